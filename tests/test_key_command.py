import pytest
import yaml
from typer.testing import CliRunner

from warpcache_ray.access_config import digest
from warpcache_ray.cli import app
from warpcache_ray.config import parse_config


def test_a_key_is_made(tmp_path):
    """What goes to stdout, appended to a file, is all that the configuration needs; the key itself isn't in it."""
    path, secrets = tmp_path / "keys.yaml", []
    for arguments in (["studio"], ["boss", "--admin"]):
        told = CliRunner().invoke(app, ["key", "create", *arguments])
        assert told.exit_code == 0, told.output
        secrets.append(told.stderr.split()[-1])
        with path.open("a") as file:
            file.write(told.stdout)
    access = parse_config({"model": {"path": "x"}, "access": {"keys_file": str(path)}}).access
    assert [(k.name, k.sha256, k.admin) for k in access.keys] == [
        ("studio", digest(secrets[0]), False),
        ("boss", digest(secrets[1]), True),
    ]
    assert not any(secret in path.read_text() for secret in secrets)
    assert all(
        set(entry) <= {"name", "sha256", "admin"} for entry in yaml.safe_load(path.read_text())
    )


@pytest.mark.parametrize("name", ["", "a b", "x" * 65])
def test_names_are_checked(name):
    """As the configuration would."""
    told = CliRunner().invoke(app, ["key", "create", name])
    assert told.exit_code == 2
    assert "1 to 64 of the characters" in " ".join(told.stderr.split())
    assert told.stdout == ""
