"""`pulsecart topics`, on the strict server as Google Cloud, and on the real emulator."""

import asyncio
import json
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pulsecart.cli import main
from pulsecart.testing import strict_pubsub
from pulsecart.testing.strict.admin import PROJECT_NUMBER
from pulsecart.transports import PubSubTransport

TOPICS = ["pulsecart.commerce-events", "pulsecart.system-events", "pulsecart.user-actions"]
AGENT = f"serviceAccount:service-{PROJECT_NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
MAILER = """
[mailer]
topic = "pulsecart.commerce-events"
dead_letter_topic = "mailer.dead"
max_delivery_attempts = 10
filter = 'attributes.event_type = "order.placed"'
"""


@pytest.fixture
def file() -> Path:
    path = Path("subscriptions.toml")
    path.write_text(MAILER)
    return path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["topics", *arguments], catch_exceptions=False)


def with_file(*arguments: str) -> Result:
    return call(*arguments, "--subscriptions", "subscriptions.toml", "--project-number", PROJECT_NUMBER)


def test_plan_says_what_apply_would_do(cloud, file):
    """The exit status is 2 if there is something to do, and nothing is done."""
    planned = with_file("plan")
    assert planned.exit_code == 2
    assert planned.output == (
        "+ topic pulsecart.commerce-events\n"
        "+ topic pulsecart.system-events\n"
        "+ topic pulsecart.user-actions\n"
        "+ topic mailer.dead\n"
        "+ subscription mailer\n"
        "    topic: pulsecart.commerce-events\n"
        "    ordering: True\n"
        '    filter: attributes.event_type = "order.placed"\n'
        "    dead_letter_topic: mailer.dead\n"
        "    max_delivery_attempts: 10\n"
        f"+ permission roles/pubsub.publisher on the topic mailer.dead for {AGENT}\n"
        f"+ permission roles/pubsub.subscriber on the subscription mailer for {AGENT}\n"
        "in project test: 7 to do; 0 are as they should be.\n"
    )
    assert not cloud.topics
    assert not cloud.subscriptions


def test_apply_creates_everything_once(cloud, file):
    """Topics, dead letters with their permissions, and ordered subscriptions; a second time there is nothing to do."""
    assert with_file("apply").exit_code == 0
    assert cloud.topics == {f"projects/test/topics/{name}" for name in [*TOPICS, "mailer.dead"]}
    assert cloud.subscriptions == {
        "projects/test/subscriptions/mailer": {
            "name": "projects/test/subscriptions/mailer",
            "ackDeadlineSeconds": 10,
            "topic": "projects/test/topics/pulsecart.commerce-events",
            "enableMessageOrdering": True,
            "filter": 'attributes.event_type = "order.placed"',
            "deadLetterPolicy": {
                "deadLetterTopic": "projects/test/topics/mailer.dead",
                "maxDeliveryAttempts": 10,
            },
        }
    }
    assert {resource: policy["bindings"] for resource, policy in cloud.policies.items()} == {
        "projects/test/topics/mailer.dead": [{"role": "roles/pubsub.publisher", "members": [AGENT]}],
        "projects/test/subscriptions/mailer": [{"role": "roles/pubsub.subscriber", "members": [AGENT]}],
    }
    for command in ("plan", "apply"):
        again = with_file(command)
        assert again.exit_code == 0
        assert again.output == "in project test: nothing to do; 5 are as they should be.\n"
    assert cloud.policy_changes == 2


def test_json(cloud, file):
    """With --json the output is a document."""
    planned = json.loads(with_file("plan", "--json").output)
    assert (planned["project"], planned["problems"], planned["unchanged"]) == ("test", [], 0)
    assert planned["changes"][0] == {
        "action": "create",
        "kind": "topic",
        "name": "pulsecart.commerce-events",
        "fields": {},
        "result": "planned",
        "error": None,
    }
    assert {change["result"] for change in json.loads(with_file("apply", "--json").output)["changes"]} == {"done"}
    assert json.loads(with_file("plan", "--json").output)["changes"] == []


def test_changed_number_of_attempts_is_an_update(cloud, file):
    """A changed dead-letter policy is shown as before and after, and applied; other fields stay."""
    with_file("apply")
    cloud.subscriptions["projects/test/subscriptions/mailer"]["ackDeadlineSeconds"] = 60
    file.write_text(MAILER.replace("10", "20"))
    assert "~ subscription mailer\n    max_delivery_attempts: 10 -> 20\n" in with_file("plan").output
    assert with_file("apply").exit_code == 0
    subscription = cloud.subscriptions["projects/test/subscriptions/mailer"]
    assert subscription["deadLetterPolicy"]["maxDeliveryAttempts"] == 20
    assert subscription["ackDeadlineSeconds"] == 60


def test_dead_letters_are_added_to_an_existing_subscription(cloud, file):
    """A subscription without a dead-letter topic gets one."""
    file.write_text('[mailer]\ntopic = "pulsecart.commerce-events"')
    assert with_file("apply").exit_code == 0
    file.write_text('[mailer]\ntopic = "pulsecart.commerce-events"\ndead_letter_topic = "mailer.dead"')
    planned = with_file("plan")
    assert "    dead_letter_topic: none -> mailer.dead\n    max_delivery_attempts: none -> 5\n" in planned.output
    assert with_file("apply").exit_code == 0
    assert with_file("plan").exit_code == 0


def test_nothing_is_deleted(cloud, file):
    """What the file no longer mentions stays: a subscription, its dead letters, and others' topics."""
    with_file("apply")
    cloud.topics.add("projects/test/topics/of-others")
    before = (set(cloud.topics), dict(cloud.subscriptions))
    file.write_text("")
    assert with_file("apply").exit_code == 0
    file.write_text(MAILER.replace("dead", "#dead").replace("max", "#max"))
    assert with_file("apply").exit_code == 0
    assert (cloud.topics, cloud.subscriptions) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"filter": "attributes:a"}, "the filter of the subscription mailer is 'attributes:a', and Pub/Sub cannot"),
        ({"enableMessageOrdering": False}, "the ordering of the subscription mailer is False"),
        ({"topic": "projects/test/topics/pulsecart.user-actions"}, "the topic of the subscription mailer is"),
    ],
)
def test_what_cannot_be_changed_is_a_problem(cloud, file, change, says):
    """Pub/Sub cannot change a subscription's topic, order and filter: it is said, and nothing else is done."""
    with_file("apply")
    cloud.subscriptions["projects/test/subscriptions/mailer"] |= change
    cloud.topics.remove("projects/test/topics/pulsecart.system-events")
    for command in ("plan", "apply"):
        ended = with_file(command)
        assert ended.exit_code == 1
        assert f"! {says}" in ended.output
        assert "nothing was changed" in ended.output
    assert "projects/test/topics/pulsecart.system-events" not in cloud.topics


def test_topics_have_the_names_of_the_deployment(cloud, file, monkeypatch):
    """The file names a topic as the catalog does; the project has it as PULSECART_TOPICS says."""
    monkeypatch.setenv("PULSECART_TOPICS", "pulsecart.commerce-events=shop.orders")
    assert with_file("apply").exit_code == 0
    assert "projects/test/topics/shop.orders" in cloud.topics
    assert "projects/test/topics/pulsecart.commerce-events" not in cloud.topics
    topic = cloud.subscriptions["projects/test/subscriptions/mailer"]["topic"]
    assert topic == "projects/test/topics/shop.orders"


def test_permissions_of_others_stay(cloud, file):
    """A binding is added to; others, also with conditions, are kept, and so is a change made at the same time."""
    with_file("apply")
    conditional = {"role": "roles/pubsub.publisher", "members": ["user:a@x"], "condition": {"expression": "false"}}
    publisher = {"role": "roles/pubsub.publisher", "members": ["user:b@x"]}
    viewer = {"role": "roles/pubsub.viewer", "members": ["user:c@x"]}
    cloud.policies["projects/test/topics/mailer.dead"] = {
        "etag": "x",
        "version": 3,
        "bindings": [conditional, publisher, viewer],
    }
    assert with_file("apply").exit_code == 0
    assert cloud.policies["projects/test/topics/mailer.dead"]["bindings"] == [
        conditional,
        {"role": "roles/pubsub.publisher", "members": [AGENT, "user:b@x"]},
        viewer,
    ]


class Busy(dict):
    """Policies that somebody else changes after each of the next readings."""

    changes = 0

    def get(self, resource, default=None):
        if self.changes:
            self.changes -= 1
            self[resource] = super().get(resource, default) | {"etag": f"changed {self.changes}"}
        return super().get(resource, default)


@pytest.mark.parametrize(("changes", "status"), [(3, 0), (1000, 1)])
def test_policy_that_others_change_is_read_again(cloud, file, changes, status):
    """A policy that is changed between reading and writing is not overwritten, but read again, five times."""
    with_file("apply")
    cloud.policies = busy = Busy()
    busy.changes = changes
    ended = with_file("apply")
    assert ended.exit_code == status
    assert ("cannot grant permissions on the topic mailer.dead: ABORTED" in ended.output) == bool(status)


@pytest.mark.parametrize(
    ("denied", "role", "what"),
    [
        ("pubsub.topics.get", "roles/pubsub.viewer", "read the topic"),
        ("pubsub.subscriptions.get", "roles/pubsub.viewer", "read the subscription mailer"),
        ("pubsub.topics.create", "roles/pubsub.editor", "create the topic pulsecart.commerce-events"),
        ("pubsub.subscriptions.create", "roles/pubsub.editor", "create the subscription mailer"),
        ("pubsub.topics.setIamPolicy", "roles/pubsub.admin", "grant permissions on the topic mailer.dead"),
    ],
)
def test_missing_permission_names_the_role(cloud, file, denied, role, what):
    """What is not permitted names the role that permits it; the rest is done, and the next run continues."""
    cloud.denied.add(denied)
    ended = with_file("apply")
    assert ended.exit_code == 1
    assert f"no permission to {what}" in ended.output
    assert f"it needs {role}" in ended.output
    cloud.denied.clear()
    assert with_file("apply").exit_code == 0
    assert with_file("plan").exit_code == 0


def test_missing_permission_to_read_permissions(cloud, file):
    """Whether a permission is there cannot be planned without reading the policy."""
    with_file("apply")
    cloud.denied.add("pubsub.topics.getIamPolicy")
    ended = with_file("plan")
    assert ended.exit_code == 1
    assert "no permission to read the permissions of the topic mailer.dead: it needs roles/pubsub.admin" in ended.output


def test_missing_permission_to_update(cloud, file):
    """An update that is not permitted is reported as failed, also in JSON."""
    with_file("apply")
    file.write_text(MAILER.replace("10", "20"))
    cloud.denied.add("pubsub.subscriptions.update")
    ended = with_file("apply")
    assert ended.exit_code == 1
    assert "failed: no permission to update the subscription mailer: it needs roles/pubsub.editor" in ended.output
    assert "0 done, 1 failed" in ended.output
    change = json.loads(with_file("apply", "--json").output)["changes"][0]
    assert change["result"] == "failed"
    assert "roles/pubsub.editor" in change["error"]


def test_half_applied_plan_continues(cloud, file):
    """What an interrupted run has created is not created again."""
    cloud.topics |= {"projects/test/topics/pulsecart.commerce-events", "projects/test/topics/mailer.dead"}
    ended = with_file("apply")
    assert ended.exit_code == 0
    assert "topic pulsecart.commerce-events" not in ended.output.partition("subscription")[0]
    assert with_file("plan").exit_code == 0


def test_resources_that_somebody_else_creates_meanwhile_are_fine(cloud, file, monkeypatch):
    """What appears between plan and creation counts as created; another failure does not."""
    create = cloud.create_topic

    async def created_twice(name, connection):
        await create(name, connection)
        await create(name, connection)

    monkeypatch.setattr(cloud, "create_topic", created_twice)
    assert with_file("apply").exit_code == 0


def test_broker_that_cannot_be_reached(monkeypatch, cloud, file):
    """Without a connection everything is reported, and nothing changed."""
    monkeypatch.setenv("PULSECART_ENDPOINT", "127.0.0.1:1")
    ended = with_file("plan")
    assert ended.exit_code == 1
    assert "cannot read the topic pulsecart.commerce-events: UNAVAILABLE: cannot connect to 127.0.0.1:1" in ended.output


def test_project_number_that_cannot_be_looked_up(monkeypatch, cloud, file):
    """Without --project-number the number is looked up; if that fails, the message says how to give it."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    ended = call("plan", "--subscriptions", "subscriptions.toml")
    assert ended.exit_code == 1
    assert "the number of the project test" in ended.output
    assert "It needs roles/browser; or give --project-number" in ended.output


def test_project_number_is_not_looked_up_if_it_is_known(monkeypatch, cloud, file):
    """A project that is named by its number needs no look-up."""
    monkeypatch.setenv("GCP_PROJECT_ID", PROJECT_NUMBER)
    assert f"for {AGENT}" in call("plan", "--subscriptions", "subscriptions.toml").output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mailer", "subscriptions.toml is not TOML"),
        ("mailer = 1", "subscriptions.toml, [mailer]: must be a table"),
        ("[mailer]", "[mailer]: topic is missing"),
        ('[m]\ntopic = "pulsecart.user-actions"', "[m]: the name of a subscription must have 3 to 255 letters"),
        ("[mailer]\ntopic = 1", "[mailer]: topic must be a text, not 1"),
        ('[mailer]\ntopic = "pulsecart.user-action"', "no event type has the topic 'pulsecart.user-action'; did you"),
        ('[mailer]\ntopic = "x"', "no event type has the topic 'x'; the topics are pulsecart.commerce-events, "),
        ('[mailer]\ntopics = "x"', "[mailer]: topics is not known; did you mean 'topic'?"),
        ("[mailer]\nzzz = 1", "[mailer]: zzz is not known; there are topic, dead_letter_topic, "),
        ('[shop.mailer]\ntopic = "x"', 'a name with a dot must be in quotes: ["shop.mailer"]'),
        (MAILER.replace("10", "4"), "max_delivery_attempts must be a whole number from 5 to 100, not 4"),
        (MAILER.replace("10", "true"), "max_delivery_attempts must be a whole number from 5 to 100, not True"),
        (MAILER.replace("dead_letter", "#"), "max_delivery_attempts needs a dead_letter_topic"),
        (MAILER.replace("mailer.dead", "goog-dead"), "dead_letter_topic must have 3 to 255 letters"),
        (MAILER.replace('"mailer.dead"', "7"), "dead_letter_topic must be a text, not 7"),
        (MAILER.replace("mailer.dead", "pulsecart.user-actions"), "dead_letter_topic is a topic of the catalog"),
        (MAILER.replace('= "order', '== "order'), "the filter is wrong: a text in double quotes is expected"),
    ],
)  # fmt: skip
def test_bad_file_is_named_before_anything_is_created(cloud, file, text, says):
    """All that is wrong is named, with the exit status 1."""
    file.write_text(text)
    for command in ("plan", "apply"):
        ended = with_file(command)
        assert ended.exit_code == 1
        assert says in ended.output
    assert not cloud.topics


def test_missing_file(cloud):
    """A file that is not there is an error."""
    ended = with_file("plan")
    assert ended.exit_code == 1
    assert "subscriptions.toml cannot be read: No such file or directory" in ended.output


def test_errors_of_usage_do_not_look_like_a_plan():
    """A misspelt option has the exit status 1, since 2 means that there is something to do."""
    ended = call("plan", "--subscription")
    assert ended.exit_code == 1
    assert "No such option" in ended.output


def test_memory_has_no_topics():
    """On the memory transport there is nothing to create."""
    ended = call("plan")
    assert ended.exit_code == 1
    assert "the memory transport has no topics: set PULSECART_TRANSPORT to pubsub, or to emulator" in ended.output


def test_wrong_catalog_is_an_error(monkeypatch):
    """A module of events that does not exist is named."""
    monkeypatch.setenv("PULSECART_EVENTS", "no_such_module")
    ended = call("plan")
    assert ended.exit_code == 1
    assert "no_such_module" in ended.output


@pytest.mark.anyio
async def test_project_number_is_looked_up():
    """The resource manager's answer has the number, as Google's has it."""
    from google.oauth2.credentials import Credentials

    async with strict_pubsub([], tls=True) as server:
        cloud = PubSubTransport(
            project="test", endpoint=server.host, roots=server.roots, credentials=Credentials("token")
        )
        async with cloud.api("https://www.googleapis.com/auth/cloud-platform") as api:
            assert (await api.call("GET", "projects/test"))["projectNumber"] == PROJECT_NUMBER


@pytest.mark.anyio
async def test_failures_that_may_be_temporary_are_tried_again():
    """An administrator's request is repeated after an error of the service, until it succeeds."""
    from google.oauth2.credentials import Credentials

    async with strict_pubsub(["shop.orders"], tls=True) as server:
        server.look_up = "INTERNAL"
        cloud = PubSubTransport(
            project="test", endpoint=server.host, roots=server.roots, credentials=Credentials("token")
        )
        async with cloud.api() as api:
            call = asyncio.create_task(api.call("GET", "projects/test/topics/shop.orders"))
            async with asyncio.timeout(10):
                while sum(server.connections.values()) < 2:
                    await asyncio.sleep(0.01)
            server.look_up = None
            assert await call == {"name": "projects/test/topics/shop.orders"}


@pytest.mark.emulator
def test_on_the_emulator(file, monkeypatch):
    """The emulator gets topics and subscriptions, a changed policy, and no permissions, which it does not have."""
    monkeypatch.setenv("GCP_PROJECT_ID", f"p-{uuid.uuid4().hex}")
    arguments = ["--subscriptions", "subscriptions.toml"]
    planned = call("plan", *arguments)
    assert planned.exit_code == 2
    assert "permission" not in planned.output
    assert call("apply", *arguments).exit_code == 0
    assert call("plan", *arguments).exit_code == 0
    file.write_text(MAILER.replace("10", "20"))
    assert "max_delivery_attempts: 10 -> 20" in call("apply", *arguments).output
    assert call("plan", *arguments).exit_code == 0
    file.write_text(MAILER.replace("placed", "failed"))
    assert "the filter of the subscription mailer is" in call("apply", *arguments).output
