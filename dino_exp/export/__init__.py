"""Export of a trained run to a folder that timm, transformers, the released code, torch.hub or ONNX reads."""
