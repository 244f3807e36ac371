"""PostgreSQL: tables, migrations, shared queries and the embedded server. No business rules of a single station."""
