"""JSON schemas of requests: what of them are schemas, where their references lead, what they make impossible."""
