"""One folder per API: schema, script, routes, and the `Api` that `app.APIS` lists."""
