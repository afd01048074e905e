"""The paths of the OpenAPI document, an API a module: its operations with examples, and the structs of its bodies."""
