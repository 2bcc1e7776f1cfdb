"""Measurements: what a network, an op or decoding costs on this machine, beside other implementations, in one run."""

# without imports, so that `--help` needs no torch
OURS = "dgmn2cli"
BENCHES = ("infer", "train", "op", "e2e", "profile", "decode", "stream")
# baseline -> what it is
BASELINES = {
    "plain": "the published design, its unfold compiled",
    "torchvision": "the published design, torchvision's deform_conv2d as its unfold",
    "definition": "the ops' definition in plain PyTorch under torch.compile (compiles for minutes)",
    "published": "this package's op in the published order of operations",
    "cuda-graphs": "this package's passes recorded and replayed, on an NVIDIA GPU",
    "onnxruntime": "the exported graph in ONNX Runtime, float32, on the CPU",
    "openvino": "the exported graph in OpenVINO, float32, on the CPU",
}
RATIO_HEADING = "dgmn2cli is"  # of the column that matters most
