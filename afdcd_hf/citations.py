"""The paper this package is built on, for the loss and the model cards."""

AF_DCD = """\
@inproceedings{fan2023afdcd,
  title     = {Augmentation-free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation},
  author    = {Fan, Jiawei and Li, Chao and Liu, Xiaolong and Song, Meina and Yao, Anbang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  eprint    = {2312.04168},
  archivePrefix = {arXiv}
}"""
