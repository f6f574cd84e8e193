"""A chat model asked and judged by the published protocol: `em eval`, `em rescore`."""
