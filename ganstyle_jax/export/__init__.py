"""What a trained network becomes for programs other than this one: `ganstyle export`.

card.py      what is said of it, for people and in the files' metadata
graph.py     ONNX, written node by node from the weights
program.py   StableHLO, by jax.export
web.py       a page that runs the ONNX file in a browser
runtime.py   onnxruntime-web, the npm package by which the page does so
"""
