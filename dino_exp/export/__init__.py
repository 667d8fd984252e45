"""Weights to elsewhere: a trained run as a folder that timm, the released code, torch.hub or ONNX reads."""
