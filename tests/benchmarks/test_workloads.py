import numpy as np

from benchmarks.workloads import generate_dataset


def test_users_keep_to_a_few_clusters() -> None:
    dataset = generate_dataset(n_users=20, n_candidates=3000, interactions_per_user=40)
    clusters = np.array(dataset.candidates["cluster"].to_pylist())
    assert len(dataset) == 800
    assert dataset.n_candidates == 3000
    for user_row in range(20):
        mine = dataset.candidate_rows[dataset.user_rows == user_row]
        assert len(mine) == 40
        assert len(set(clusters[mine])) <= 3


def test_the_seed_decides() -> None:
    one, same, other = (generate_dataset(5, 500, 10, seed) for seed in (1, 1, 2))
    assert one.candidate_rows.tolist() == same.candidate_rows.tolist()
    assert one.candidate_rows.tolist() != other.candidate_rows.tolist()
