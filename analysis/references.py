"""The works that a report's methods rest on, as BibTeX."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """One work."""

    kind: str
    authors: str
    """As BibTeX has them, joined by ` and `."""
    title: str
    year: int
    where: str
    """Journal, conference or `arXiv`."""
    arxiv: str | None = None
    doi: str | None = None

    @property
    def short(self) -> str:
        """As in running text: Hoffmann et al. 2022."""
        names = [author.partition(",")[0].strip("{}") for author in self.authors.split(" and ")]
        who = names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} et al."
        return f"{who} {self.year}"

    @property
    def address(self) -> str:
        """Where it can be read."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else f"https://doi.org/{self.doi}"

    def bibtex(self, key: str) -> str:
        """The entry under `key`."""
        place = "booktitle" if self.kind == "inproceedings" else "journal"
        fields = {"author": self.authors, "title": f"{{{self.title}}}", place: self.where, "year": str(self.year)}
        fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"} if self.arxiv else {}
        fields |= {"doi": self.doi} if self.doi else {}
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@{self.kind}{{{key},\n{lines}\n}}\n"


HOFFMANN = (
    "Hoffmann, Jordan and Borgeaud, Sebastian and Mensch, Arthur and Buchatskaya, Elena and Cai, Trevor and "
    "Rutherford, Eliza and others"
)

REFERENCES: dict[str, Reference] = {
    "hoffmann2022": Reference(
        "article", HOFFMANN, "Training Compute-Optimal Large Language Models", 2022, "arXiv", arxiv="2203.15556"
    ),
    "besiroglu2024": Reference(
        "article",
        "Besiroglu, Tamay and Erdil, Ege and Barnett, Matthew and You, Josh",
        "Chinchilla Scaling: A Replication Attempt",
        2024,
        "arXiv",
        arxiv="2404.10102",
    ),
    "peebles2023": Reference(
        "inproceedings",
        "Peebles, William and Xie, Saining",
        "Scalable Diffusion Models with Transformers",
        2023,
        "International Conference on Computer Vision",
        arxiv="2212.09748",
    ),
    "yang2022": Reference(
        "article",
        "Yang, Greg and Hu, Edward J. and Babuschkin, Igor and Sidor, Szymon and Liu, Xiaodong and others",
        "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
        2022,
        "arXiv",
        arxiv="2203.03466",
    ),
    "dey2025": Reference(
        "article",
        "Dey, Nolan and Zhang, Bin Claire and Noci, Lorenzo and Li, Mufan and Bordelon, Blake and others",
        "Don't be lazy: CompleteP enables compute-efficient deep transformers",
        2025,
        "arXiv",
        arxiv="2505.01618",
    ),
    "liu2023": Reference(
        "inproceedings",
        "Liu, Xingchao and Gong, Chengyue and Liu, Qiang",
        "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        2023,
        "International Conference on Learning Representations",
        arxiv="2209.03003",
    ),
    "ho2020": Reference(
        "inproceedings",
        "Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
        "Denoising Diffusion Probabilistic Models",
        2020,
        "Advances in Neural Information Processing Systems",
        arxiv="2006.11239",
    ),
    "karras2022": Reference(
        "inproceedings",
        "Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        2022,
        "Advances in Neural Information Processing Systems",
        arxiv="2206.00364",
    ),
    "ma2024": Reference(
        "inproceedings",
        "Ma, Nanye and Goldstein, Mark and Albergo, Michael S. and Boffi, Nicholas M. and others",
        "SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers",
        2024,
        "European Conference on Computer Vision",
        arxiv="2401.08740",
    ),
    "salimans2022": Reference(
        "inproceedings",
        "Salimans, Tim and Ho, Jonathan",
        "Progressive Distillation for Fast Sampling of Diffusion Models",
        2022,
        "International Conference on Learning Representations",
        arxiv="2202.00512",
    ),
    "li2025": Reference(
        "article",
        "Li, Tianhong and He, Kaiming",
        "Back to Basics: Let Denoising Generative Models Denoise",
        2025,
        "arXiv",
        arxiv="2511.13720",
    ),
    "chang2022": Reference(
        "inproceedings",
        "Chang, Huiwen and Zhang, Han and Jiang, Lu and Liu, Ce and Freeman, William T.",
        "MaskGIT: Masked Generative Image Transformer",
        2022,
        "Conference on Computer Vision and Pattern Recognition",
        arxiv="2202.04200",
    ),
    "jin2024": Reference(
        "article",
        "Jin, Yang and Sun, Zhicheng and Li, Ningyuan and Xu, Kun and Jiang, Hao and others",
        "Pyramidal Flow Matching for Efficient Video Generative Modeling",
        2024,
        "arXiv",
        arxiv="2410.05954",
    ),
    "dhariwal2021": Reference(
        "inproceedings",
        "Dhariwal, Prafulla and Nichol, Alex",
        "Diffusion Models Beat GANs on Image Synthesis",
        2021,
        "Advances in Neural Information Processing Systems",
        arxiv="2105.05233",
    ),
    "esser2024": Reference(
        "inproceedings",
        "Esser, Patrick and Kulal, Sumith and Blattmann, Andreas and Entezari, Rahim and Müller, Jonas and others",
        "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
        2024,
        "International Conference on Machine Learning",
        arxiv="2403.03206",
    ),
    "labs2025": Reference(
        "article",
        "{Black Forest Labs} and Batifol, Stephen and Blattmann, Andreas and Boesel, Frederic and others",
        "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in Latent Space",
        2025,
        "arXiv",
        arxiv="2506.15742",
    ),
    "bao2023": Reference(
        "inproceedings",
        "Bao, Fan and Nie, Shen and Xue, Kaiwen and Cao, Yue and Li, Chongxuan and Su, Hang and Zhu, Jun",
        "All are Worth Words: A ViT Backbone for Diffusion Models",
        2023,
        "Conference on Computer Vision and Pattern Recognition",
        arxiv="2209.12152",
    ),
    "maxin2024": Reference(
        "article",
        "Ma, Xin and Wang, Yaohui and Jia, Gengyun and Chen, Xinyuan and Liu, Ziwei and others",
        "Latte: Latent Diffusion Transformer for Video Generation",
        2024,
        "arXiv",
        arxiv="2401.03048",
    ),
    "ho2022": Reference(
        "inproceedings",
        "Ho, Jonathan and Salimans, Tim and Gritsenko, Alexey and Chan, William and others",
        "Video Diffusion Models",
        2022,
        "Advances in Neural Information Processing Systems",
        arxiv="2204.03458",
    ),
    "hagele2024": Reference(
        "inproceedings",
        "Hägele, Alexander and Bakouch, Elie and Kosson, Atli and Ben Allal, Loubna and others",
        "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
        2024,
        "Advances in Neural Information Processing Systems",
        arxiv="2405.18392",
    ),
    "loshchilov2019": Reference(
        "inproceedings",
        "Loshchilov, Ilya and Hutter, Frank",
        "Decoupled Weight Decay Regularization",
        2019,
        "International Conference on Learning Representations",
        arxiv="1711.05101",
    ),
    "karras2024": Reference(
        "inproceedings",
        "Karras, Tero and Aittala, Miika and Lehtinen, Jaakko and Hellsten, Janne and Aila, Timo and Laine, Samuli",
        "Analyzing and Improving the Training Dynamics of Diffusion Models",
        2024,
        "Conference on Computer Vision and Pattern Recognition",
        arxiv="2312.02696",
    ),
    "heusel2017": Reference(
        "inproceedings",
        "Heusel, Martin and Ramsauer, Hubert and Unterthiner, Thomas and Nessler, Bernhard and Hochreiter, Sepp",
        "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
        2017,
        "Advances in Neural Information Processing Systems",
        arxiv="1706.08500",
    ),
    "golub1973": Reference(
        "article",
        "Golub, Gene H. and Pereyra, Victor",
        "The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems Whose Variables Separate",
        1973,
        "SIAM Journal on Numerical Analysis",
        doi="10.1137/0710036",
    ),
    "seber1989": Reference(
        "book",
        "Seber, George A. F. and Wild, Chris J.",
        "Nonlinear Regression",
        1989,
        "Wiley",
        doi="10.1002/0471725315",
    ),
    "rajbhandari2020": Reference(
        "inproceedings",
        "Rajbhandari, Samyam and Rasley, Jeff and Ruwase, Olatunji and He, Yuxiong",
        "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
        2020,
        "International Conference for High Performance Computing, Networking, Storage and Analysis",
        arxiv="1910.02054",
    ),
    "moritz2018": Reference(
        "inproceedings",
        "Moritz, Philipp and Nishihara, Robert and Wang, Stephanie and Tumanov, Alexey and Liaw, Richard and others",
        "Ray: A Distributed Framework for Emerging AI Applications",
        2018,
        "USENIX Symposium on Operating Systems Design and Implementation",
        arxiv="1712.05889",
    ),
}


def bibliography(keys: Iterable[str]) -> str:
    """A BibTeX file of the works cited, by key."""
    return "\n".join(REFERENCES[key].bibtex(key) for key in sorted(set(keys)))
