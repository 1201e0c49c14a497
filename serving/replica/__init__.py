"""The engine inside Ray Serve: model servers, and the backends by which the ingress reaches them."""
