"""The Llama decoder and its parts: no mesh axis and no file is named here."""
