"""The rules of HTTP as functions from requests to responses, and the endpoints that use them."""
