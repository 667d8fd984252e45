"""Export of a trained run to a folder that timm, the released code, torch.hub or ONNX Runtime reads."""
