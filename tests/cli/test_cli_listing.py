import json

from fakes import with_facts

TABLE = """\
NAME                         KIND       STATUS  DISTRIBUTION  VERSION  SUMMARY
activation_apoz_rank_filter  pruner     ok      engine        0.1.0    Channels most often zero
activation_mean_rank_filter  pruner     ok      engine        0.1.0    Channels of smallest output
ada_round                    quantizer  ok      engine        0.1.0    Rounding learned by layer
admm                         search     ok      engine        0.1.0    Training towards sparsity
agp                          schedule   ok      engine        0.1.0    Gradual cubic sparsity (2017)
amc                          search     ok      engine        0.1.0    An agent picks sparsities
auto_compress                search     ok      engine        0.1.0    Annealing and ADMM in rounds
awq                          quantizer  ok      engine        0.1.0    Activation-aware scales
bnn                          quantizer  ok      engine        0.1.0    Weights and outputs by sign
depth                        blocks     ok      engine        0.1.0    Whole blocks, by influence
dorefa                       quantizer  ok      engine        0.1.0    Low-bit weights and gradients
fpgm                         pruner     ok      engine        0.1.0    Channels nearest the median
gptq                         quantizer  ok      engine        0.1.0    Second order rounding
l1_filter                    pruner     ok      engine        0.1.0    Channels of smallest L1 norm
l2_filter                    pruner     ok      engine        0.1.0    Channels of smallest L2 norm
level                        pruner     ok      engine        0.1.0    Smallest weights, per layer
linear                       schedule   ok      engine        0.1.0    Sparsity that rises evenly
lottery_ticket               schedule   ok      engine        0.1.0    Rounds of prune and rewind
lsq                          quantizer  ok      engine        0.1.0    Learned step sizes
lsq_plus                     quantizer  ok      engine        0.1.0    Learned steps and offsets
naive                        quantizer  ok      engine        0.1.0    Weights on a symmetric grid
net_adapt                    search     ok      engine        0.1.0    One layer a round, the best
ptq                          quantizer  ok      engine        0.1.0    Ranges without training
qat                          quantizer  ok      engine        0.1.0    Integer grid while training
sensitivity                  search     ok      engine        0.1.0    Layers by what they tolerate
simulated_annealing          search     ok      engine        0.1.0    Sparsities by annealing
slim                         pruner     ok      engine        0.1.0    Channels of smallest BN scale
smooth_quant                 quantizer  ok      engine        0.1.0    Outliers moved to weights
sparse_gpt                   pruner     ok      engine        0.1.0    Second order, one shot
taylor_fo_weight_filter      pruner     ok      engine        0.1.0    Channels the loss needs least
wanda                        pruner     ok      engine        0.1.0    Weight times input norm
"""


def test_the_table(run):
    assert run("list-algorithms") == (0, TABLE, "")


def test_a_table_with_plugins_that_cannot_be_used(run, site, monkeypatch):
    site.plugin("lut", "lut-plugin-with-a-long-name", "0.3.1.dev20240101", schema=None)
    site.plugin("level", "other")
    site.plugin(
        "an_algorithm_with_a_name_that_does_not_fit", "z", schema=with_facts(summary="é" * 99)
    )
    monkeypatch.setenv("ENGINE_BLOCK", "slim")
    code, output, _ = run("list-algorithms")
    table, _, notes = output.partition("\n\n")
    assert code == 0
    assert max(map(len, table.splitlines())) <= 100
    assert [line.split()[0] for line in table.splitlines()[1:]] == sorted(
        line.split()[0] for line in table.splitlines()[1:]
    )
    assert notes == (
        'level (other 1.0), clash: also offered by engine 0.1.0; this one is "other:level"\n'
        "lut (lut-plugin-with-a-long-name 0.3.1.dev20240101), broken: no schema.json beside "
        "lut_plugin_with_a_long_name\n"
        "slim (engine 0.1.0), blocked: listed in ENGINE_BLOCK\n"
    )


def test_extensions_have_a_table_of_their_own(run, site):
    facts = with_facts(kind="any", role="watcher")
    site.plugin("bars", "bars", group="extensions", schema=facts)
    listed = [line.split() for line in run("list-algorithms", "--extensions")[1].splitlines()]
    assert [row[0] for row in listed[1 : listed.index([])]] == [
        "bars",
        "channel_rounding",
        "dependency_aware",
        "distillation",
        "global_ranking",
        "log",
        "n_m",
        "progress",
        "tensorboard",
    ]
    assert listed[1][:5] == ["bars", "watcher", "ok", "bars", "1.0"]


def test_the_same_facts_as_json(run, site):
    site.plugin("lut", "lut-plugin", schema=None)
    code, output, errors = run("list-algorithms", "--json")
    rows = {row["name"]: row for row in json.loads(output)}
    assert (code, errors) == (0, "")
    assert rows["agp"] == {
        "name": "agp",
        "kind": "pruning",
        "role": "schedule",
        "status": "ok",
        "reason": "",
        "distribution": "engine",
        "version": "0.1.0",
        "class": "plugins_builtin.agp:AGPPruner",
        "api": "1.0",
        "summary": "Gradual cubic sparsity (2017)",
        "paper": {
            "title": "To prune, or not to prune: exploring the efficacy of pruning for model "
            "compression",
            "authors": "Michael Zhu, Suyog Gupta",
            "year": 2017,
            "arxiv": "1710.01878",
        },
        "aliases": ["AGPruner", "AGP_Pruner"],
        "capabilities": [],
    }
    assert rows["lut"]["status"] == "broken"
    assert rows["lut"]["reason"] == "no schema.json beside lut_plugin"
    assert rows["lut"].keys() == rows["agp"].keys()
