"""What policies there are; and what admins do with the published ones over HTTP, as `warpcache policy` does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from warpcache_ray.config import LoraName
from warpcache_ray.core.policies import POLICIES
from warpcache_ray.policy_slots import Served
from warpcache_ray.policy_spec import summarize_policy
from warpcache_ray.serving import answers
from warpcache_ray.serving.access import only_admins
from warpcache_ray.store.policies import ALL, What

if TYPE_CHECKING:
    from warpcache_ray.serving.ingress import Service

LARGEST = 2**53
Slot = Annotated[str, Path(pattern="^[a-z]+-[0-9a-f]{16}$", description="As the list names it.")]
Number = Annotated[int, Field(ge=1, le=LARGEST)]


class Sizes(BaseModel):
    """What of a request decides which policy it is given; what is left out is as the service has it."""

    model_config = ConfigDict(extra="forbid")

    height: int | None = Field(None, ge=16, le=LARGEST)
    width: int | None = Field(None, ge=16, le=LARGEST)
    num_frames: int | None = Field(None, ge=1, le=LARGEST)
    num_inference_steps: int | None = Field(None, ge=1, le=LARGEST)
    guidance_scale: float | None = Field(None, ge=0, le=50)
    lora: LoraName | None = None


class Offered(BaseModel):
    """A policy, and where it comes from."""

    policy: dict[str, Any]
    policy_origin: dict[str, Any]


class Change(BaseModel):
    """Why something is changed, and the slot's revision that it has to have for that (None: any)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    why: str = Field("", max_length=1000)
    revision: int | None = Field(None, ge=0, le=LARGEST)


class Activation(Change):
    """A version that is there; with a share (in percent) below 100 it becomes the canary."""

    version: Number
    share: int = Field(ALL, ge=1, le=ALL)


class Publication(Change):
    """A new document, as `warpcache profile` and `warpcache policy export` write it, and which quality it is for."""

    document: dict[str, Any]
    quality: Served = "default"
    share: int = Field(ALL, ge=1, le=ALL)


class SlotLine(BaseModel):
    """What is in force for a slot; `key`, `target`, `certified` and `expected` are the active version's, or where there
    is none the canary's."""

    slot: str
    quality: Served
    revision: int
    active: int | None
    canary: int | None
    share: int = Field(description="Of the canary, in percent.")
    key: dict[str, Any] | None
    target: dict[str, Any] | None
    certified: bool | None
    expected: dict[str, Any] | None


class InForce(BaseModel):
    """The documents of the versions in force."""

    active: dict[str, Any] | None
    canary: dict[str, Any] | None


class SlotState(SlotLine):
    """A slot's line, with its documents."""

    documents: InForce


class PastChange(BaseModel):
    """An entry of a slot's history: which version it was about, who made it, and why, at what unix time."""

    revision: int
    version: int | None
    what: What
    share: int
    who: str
    why: str
    at: float


def routes(service: Service) -> APIRouter:
    """`/policies`, and all routes below it."""
    router = APIRouter(prefix="/policies", responses=answers.PROBLEMS)
    admins = APIRouter(prefix="/published", dependencies=[Depends(only_admins)])
    _add_looks(admins, service)
    _add_changes(admins, service)
    router.include_router(admins)

    @router.get("")
    async def policies() -> dict[str, Any]:
        """Every policy with its parameters' defaults, and what the configuration has for each quality."""
        return {
            "default": summarize_policy(service.config.default_policy),
            "qualities": {
                q: summarize_policy(service.config.quality_policy(q))
                for q in ("exact", "high", "balanced", "fast")
            },
            "policies": {name: summarize_policy(kind()) for name, kind in POLICIES.items()},
        }

    @router.get("/offered", response_model=dict[str, Offered])
    async def offered(sizes: Annotated[Sizes, Query()]) -> Any:
        """The policy that such a request is given for each quality: a published one where there is one, otherwise what
        stands in for it. A canary takes its share of the requests beside it."""
        defaults = service.config.model.defaults
        usual = {name: getattr(defaults, name) for name in defaults.__slots__}
        found = await service.ask("offered", usual | sizes.model_dump(exclude_none=True))
        return {
            name: Offered(policy=summarize_policy(each["policy"]), policy_origin=each["origin"])
            for name, each in found.items()
        }

    return router


def _add_looks(router: APIRouter, service: Service) -> None:
    @router.get("", response_model=list[SlotLine])
    async def slots() -> Any:
        """All slots that were ever published for."""
        return await service.ask("published", "slots")

    @router.get("/{slot}", response_model=SlotState)
    async def show(slot: Slot) -> Any:
        """A slot with the documents that are in force."""
        return await service.ask("published", "show", slot)

    @router.get("/{slot}/document")
    async def document(
        slot: Slot, version: Annotated[int | None, Query(ge=1, le=LARGEST)] = None
    ) -> dict[str, Any]:
        """A version's document, by default the active one's."""
        found: dict[str, Any] = await service.ask("published", "document", slot, version)
        return found

    @router.get("/{slot}/history", response_model=list[PastChange])
    async def history(slot: Slot) -> Any:
        """The slot's last changes, the newest first."""
        return await service.ask("published", "history", slot)


def _add_changes(router: APIRouter, service: Service) -> None:
    async def change(method: str, *of: Any, told: Change, share: tuple[int, ...] = ()) -> Any:
        who = f"{service.caller.name} (HTTP)"
        return await service.ask("published", method, *of, who, told.why, *share, told.revision)

    @router.post("", response_model=SlotLine)
    async def publish(body: Publication) -> Any:
        """Publishes a document, for all requests or as a canary; who asks stands in the history."""
        return await change("publish", body.quality, body.document, told=body, share=(body.share,))

    @router.post("/{slot}/set", response_model=SlotLine)
    async def activate(slot: Slot, body: Activation) -> Any:
        """Has a version that is there in force, or as the canary."""
        return await change("activate", slot, body.version, told=body, share=(body.share,))

    @router.post("/{slot}/promote", response_model=SlotLine)
    async def promote(slot: Slot, body: Change) -> Any:
        """Has the canary in force."""
        return await change("promote", slot, told=body)

    @router.post("/{slot}/withdraw", response_model=SlotLine)
    async def withdraw(slot: Slot, body: Change) -> Any:
        """Ends the canary."""
        return await change("withdraw", slot, told=body)

    @router.post("/{slot}/rollback", response_model=SlotLine)
    async def rollback(slot: Slot, body: Change) -> Any:
        """Has what was in force before in force again."""
        return await change("rollback", slot, told=body)
