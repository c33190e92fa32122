"""MovieLens-100K (Harper and Konstan, 2015): 100,000 ratings of 1,682 films by 943 users.

GroupLens does not allow redistribution, so the files come from where they ship publicly: the wheel
of RecBole 1.2.1, as tab-separated atomic files with headers such as `user_id:token`.
"""

from pathlib import Path

from pipelines.datasets.dataset import Dataset
from pipelines.datasets.wheel import fetch_members
from pipelines.sources import OnProgress

REQUIREMENT = "recbole==1.2.1"
FOLDER = "recbole/dataset_example/ml-100k"
SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}


def _fetch(folder: Path, on_progress: OnProgress) -> None:
    members = {f"{FOLDER}/{name}": sha256 for name, sha256 in SHA256.items()}
    fetch_members(REQUIREMENT, members, folder, on_progress)


DATASET = Dataset(
    name="movielens-100k",
    description="film ratings 1-5 with user, item, time, age, occupation and genres",
    rows=100_000,
    licence="GroupLens: research use, no redistribution",
    fetch=_fetch,
)
