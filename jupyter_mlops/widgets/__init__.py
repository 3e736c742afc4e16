"""Interactive forms for cells, on ipywidgets (extra ``widgets``); each has a text and an HTML form beside."""
