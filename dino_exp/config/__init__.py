"""Configuration: typed schema, composition, checks before anything runs, and a run's identity.

`schema` has the keys and their meaning and `schema_store` makes them known to Hydra; `compose` turns a
command line into checked configurations, with `validate` for what types cannot say; `identity` names a run;
`targets` builds components; `plugins` imports those of others.
"""
