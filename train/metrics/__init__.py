"""What a run tells: of every logged step one `Row`, which goes to the console, to files and to whoever else listens.

counts.py       what a batch holds: tokens, tiles, samples
meter.py        collects metrics without stopping the device, and turns them into rows
writers.py      where rows go: metrics.jsonl, TensorBoard, Weights & Biases
display.py      a progress bar at a terminal, plain lines elsewhere
history.py      reading metrics.jsonl back, and cutting what a crash has left behind
plot.py         loss.png, and `python -m train plot RUN [RUN…]`
trace.py        `--profile FROM:TO`
"""
