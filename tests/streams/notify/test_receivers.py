"""A receiver's file, and what is said of one that is wrong."""

from pathlib import Path

import pytest

from tests.streams.play import play
from tidegate.schemas.errors import InputError
from tidegate.streams.notify.receivers import TOLD_VERDICTS, Receiver, load_receivers

GOOD = """
receivers:
  - name: oncall
    url: https://hooks.example.com/tidegate
    secret_env: ONCALL_SECRET
    verdicts: [abort, rollback, kill]
    flags: [prompt_pack_vNplus1]
    regions: [us-east-1]
    timeout: 5s
  - name: team
    format: slack
    url_file: /run/secrets/slack
"""
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def of(**given: str) -> Receiver:
    """One that is as given."""
    return Receiver.model_validate({"name": "a"} | given)


def load(tmp_path: Path, text: str) -> list[Receiver]:
    path = tmp_path / "notify.yml"
    path.write_text(text)
    return load_receivers(path)


def test_a_file_is_read(tmp_path: Path) -> None:
    oncall, team = load(tmp_path, GOOD)
    assert (oncall.format, oncall.timeout, team.format) == ("cloudevents", 5_000, "slack")
    assert oncall.address() == "https://hooks.example.com/tidegate"
    assert len(oncall.signers({"ONCALL_SECRET": f"{KEY}\n{KEY}\n"})) == 2
    assert team.signers() == []
    assert team.verdicts == TOLD_VERDICTS
    assert not {"hold", "pass"} & set(TOLD_VERDICTS)


def test_the_filter_takes_what_has_all_of_its_fields(tmp_path: Path) -> None:
    oncall, team = load(tmp_path, GOOD)
    told = [one for one in play("errors").decisions if oncall.wants(one)]
    assert [one.verdict for one in told] == ["abort"]
    assert {one.verdict for one in play("errors").decisions if team.wants(one)} == {"promote", "abort"}
    for change in ({"flags": ("other",)}, {"regions": ("eu",)}, {"verdicts": ("promote",)}):
        assert not oncall.model_copy(update=change).wants(told[0])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("timeout: 5s", "timeuot: 5s", r"receivers\[0\]\.timeuot: unknown key; use name, "),
        ("timeout: 5s", "timeout: 1h", r"receivers\[0\]\.timeout: "),
        ("timeout: 5s", "verdicts: [abort]", r"verdicts"),
        ("[abort, rollback, kill]", "[abrot]", r"receivers\[0\]\.verdicts\[0\]: .*'abort'"),
        ("[abort, rollback, kill]", "[]", r"receivers\[0\]\.verdicts"),
        ("secret_env: ONCALL_SECRET", "", r"receivers\[0\]: write one of secret_file and secret_env"),
        ("url_file: /run/secrets/slack", "", r"receivers\[1\]: write one of url, url_file and url_env"),
        ("format: slack", "format: slack\n    secret_env: X", r"receivers\[1\]: Slack takes no signature"),
        ("name: team", "name: oncall", r"receivers\[1\]\.name: oncall is there already"),
        ("name: team", "name: Team one", r"receivers\[1\]\.name: "),
        ("receivers:", "receiver:", r"receiver: unknown key; use receivers|receivers: Field required"),
        ("  - name: oncall", "  - [", r"not YAML"),
    ],
)
def test_what_is_wrong_is_named_by_its_place_with_the_way_out(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(tmp_path, GOOD.replace(old, new))


def test_an_empty_file_and_one_that_is_not_there(tmp_path: Path) -> None:
    for text in ("", "receivers: []\n"):
        with pytest.raises(InputError, match="receivers"):
            load(tmp_path, text)
    with pytest.raises(InputError, match="No such file"):
        load_receivers(tmp_path / "none.yml")


@pytest.mark.parametrize("url", ["http://hooks.example.com/x", "http://8.8.8.8/x"])
def test_what_can_be_read_on_the_way_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="write https://"):
        of(url=url, secret_env="X").address()


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080/x", "http://hooks/x", "http://a.b.svc.cluster.local/x"])
def test_what_stays_on_the_machine_or_in_the_cluster_is_taken(url: str) -> None:
    assert of(url=url, secret_env="X").address() == url


@pytest.mark.parametrize("url", ["ftp://x/y", "hooks.example.com", "https://", "https://[", "https://x:y/"])
def test_what_is_no_url_is_told_without_showing_it(url: str) -> None:
    with pytest.raises(InputError, match="its URL is not valid") as caught:
        of(url_env="X", secret_env="X").address({"X": url})
    assert url.removeprefix("https://") in ("", "[") or url not in str(caught.value)


@pytest.mark.parametrize("secret", ["whsec_%%%", "nothing at all!", "é", "whsec_c2hvcnQ=", KEY[:-1] + "é"])
def test_a_secret_that_is_none_is_told_without_showing_it(secret: str) -> None:
    with pytest.raises(InputError, match="its secret is none") as caught:
        of(url="https://x/", secret_env="X").signers({"X": secret})
    assert secret not in str(caught.value)


def test_a_secret_that_is_not_there_is_named_by_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="secret_env: MISSING is empty or not set"):
        of(url="https://x/", secret_env="MISSING").signers({})
    with pytest.raises(InputError, match=r"secret_file: .*none: No such file"):
        of(url="https://x/", secret_file=str(tmp_path / "none")).signers()
