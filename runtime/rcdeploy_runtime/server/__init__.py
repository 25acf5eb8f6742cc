"""An HTTP server for one package, with the routes of OpenAI's images API (extra `server`)."""
