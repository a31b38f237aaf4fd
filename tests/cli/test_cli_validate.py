GOOD = """\
name: digits
compression:
  compressor: agp
  pruning_algorithm: taylorfo
  config_list:
    - {final_sparsity: 0.5, end_epoch: 10, op_types: [Conv2d]}
    - {exclude: true, op_names: [conv1]}
"""


def test_what_was_understood(run, file):
    assert run("validate", file(GOOD)) == (
        0,
        "c.yaml: ok\n"
        "  pruning by agp around taylor_fo_weight_filter\n"
        "  dependency_aware false, statistics_batch_num 1, pruning_algorithm taylorfo\n"
        "  entry 0: initial_sparsity 0, final_sparsity 0.5, start_epoch 0, end_epoch 10, "
        "frequency 1, op_types [Conv2d]\n"
        "  entry 1: exclude true, op_names [conv1]\n",
        "",
    )


def test_what_is_wrong(run, file):
    assert run("validate", file(GOOD.replace("0.5", "1.5"))) == (
        2,
        "",
        "c.yaml: 1 problem\n\n/compression/config_list/0/final_sparsity   (line 6)\n"
        "  1.5 is out of range\n  agp needs: 0 <= final_sparsity < 1\n",
    )


def test_a_file_that_is_not_there(run):
    assert run("validate", "no.yaml") == (
        2,
        "",
        "no.yaml: 1 problem\n\n/\n  there is no such file\n",
    )


def test_a_file_of_the_first_format_is_read_with_a_note(run, file):
    path = file("LevelPruner:\n  config:\n  - {sparsity: 0.5, support_type: default}\n")
    code, output, errors = run("validate", path)
    assert (code, output) == (
        0,
        "c.yaml: ok\n  pruning by level\n  entry 0: sparsity 0.5, op_types [default]\n",
    )
    assert errors.startswith(
        "note: c.yaml is of the format of NNI's first compression release; today it is written as"
    )
