// Node-RED's settings for the flow in flows.json. The flow itself reads CLAWBILL_URL and CLAWBILL_TOKEN.
module.exports = {
    flowFile: "flows.json",
    uiHost: process.env.NODE_RED_HOST || "127.0.0.1",
    uiPort: process.env.PORT || 1880,
    // What waits to be posted is on disk within a second, and posted after a restart.
    contextStorage: {
        default: { module: "localfilesystem", config: { flushInterval: 1 } },
        memory: { module: "memory" },
    },
    telemetry: { enabled: false, updateNotification: false },
    externalModules: { autoInstall: false, palette: { allowInstall: false, allowUpload: false } },
    functionExternalModules: false,
    logging: { console: { level: "info", metrics: false, audit: false } },
};
