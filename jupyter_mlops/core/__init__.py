"""Resources, store, policy and controllers; knows neither Jupyter nor any driver."""
