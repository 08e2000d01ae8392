"""What only the local engine does: its store, its layers, images that are brought in."""

from __future__ import annotations

import pytest
from worlds import World, members_of, run

from pytest_stagebuild.engines.local import LocalEngine, engine
from pytest_stagebuild.engines.protocol import StoredImage

pytestmark = pytest.mark.engine


def test_a_stack_of_many_layers_is_flattened_and_holds_the_same(
    local: LocalEngine, local_base: StoredImage, world_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine._DEEPEST == 32
    monkeypatch.setattr(engine, "_DEEPEST", 4)
    world: World = world_of(local, local_base)
    image = local_base
    for number in range(8):
        with world.started({f"src/f{number}": b"%d" % number}, image=image) as sandbox:
            run(sandbox, f"rm -f soft f{number - 2}; ln f{number} hard{number}; ln -s f{number} soft")
            run(sandbox, f"mkdir -p empty; chmod 700 f{number}")
            image = sandbox.commit(world.name(f"n{number}"), {})
        found = local._store.find(image.id)
        assert found
        assert len(found.stack) <= 5
    assert image.layers[:1] == local_base.layers
    assert len(image.layers) == 9
    with world.sandbox(image) as sandbox:
        files = members_of(sandbox.get("/src"))
        assert run(sandbox, "python3 -c 'print(1)'; readlink /bin; ls -ld /tmp").stdout.startswith(
            b"1\nusr/bin\ndrwxrwxrwt"
        )
    there = {name.removeprefix("src/") for name in files} - {"src"}
    assert there == {"f6", "f7", "soft", "empty", *(f"hard{number}" for number in range(8))}
    assert files["src/f7"][0].mode & 0o777 == 0o700
    assert files["src/soft"][0].linkname == "f7"
