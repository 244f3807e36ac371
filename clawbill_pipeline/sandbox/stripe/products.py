"""Products: ``/v1/products``."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, merged_metadata, page, public
from clawbill_pipeline.sandbox.stripe.errors import ApiError, invalid
from clawbill_pipeline.sandbox.stripe.events import emit

_PLAIN = ("active", "description", "images", "name", "statement_descriptor", "unit_label", "url")


def create(call: Call, params: Document) -> Document:
    identifier = params.get("id") or call.new_id("prod")
    if call.store.get(call.account, "product", identifier):
        raise ApiError(400, "Product already exists.", code="resource_already_exists", param="id", kept=True)
    product: Document = {
        "id": identifier,
        "object": "product",
        **dict.fromkeys(_PLAIN),
        "active": True,
        "created": call.now,
        "default_price": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "package_dimensions": None,
        "shippable": None,
        "tax_code": None,
        "type": "service",
        "updated": call.now,
    }
    _apply(call, product, params)
    call.put("product", product)
    emit(call, "product.created", "product", product)
    return public(product)


def retrieve(call: Call, params: Document, id: str) -> Document:
    return public(call.find("product", id))


def update(call: Call, params: Document, id: str) -> Document:
    product = call.find("product", id)
    before = public(product)
    _apply(call, product, params)
    product["updated"] = call.now
    call.put("product", product)
    emit(call, "product.updated", "product", product, before)
    return public(product)


def delete(call: Call, params: Document, id: str) -> Document:
    product = call.find("product", id)
    if call.store.select(call.account, "price", parent=id):
        raise invalid("This product cannot be deleted because it has one or more user-created prices.")
    emit(call, "product.deleted", "product", product)
    call.store.drop(call.account, "product", id)
    return {"id": id, "object": "product", "deleted": True}


def list_all(call: Call, params: Document) -> Document:
    def keep(product: Document) -> bool:
        return params.get("active", product["active"]) == product["active"] and (
            "ids" not in params or product["id"] in params["ids"]
        )

    return page(call, "product", params, "/v1/products", keep=keep)


def _apply(call: Call, product: Document, params: Document) -> None:
    for name in _PLAIN:
        if name in params:
            product[name] = params[name] if params[name] != "" else ([] if name == "images" else None)
    if not product["name"]:
        raise invalid("You passed an empty string for 'name'.", "name", "parameter_invalid_empty")
    product["metadata"] = merged_metadata(product["metadata"], params.get("metadata"))


_FIELDS = " ".join(("metadata", *_PLAIN))
ROUTES = [
    Route("POST", "/v1/products", Contract("ProductCreateParams", f"id {_FIELDS}"), create),
    Route(
        "GET",
        "/v1/products",
        Contract("ProductListParams", "active created ending_before ids limit starting_after"),
        list_all,
    ),
    Route("GET", "/v1/products/{id}", Contract("ProductRetrieveParams"), retrieve),
    Route("POST", "/v1/products/{id}", Contract("ProductUpdateParams", _FIELDS), update),
    Route("DELETE", "/v1/products/{id}", Contract("ProductDeleteParams"), delete),
]
