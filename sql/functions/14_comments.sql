-- What `\d+` says of columns, where the migration that made the table or the view does not say it: migrations are never edited. A column
-- that is new is explained by the migration that adds it. Partitions take the comments of their table when they are made.

comment on column sundown.installation.one is 'Always true: there is one row.';

comment on column sundown.agent_live.id is 'The agent. Written by submit.';
comment on column sundown.agent_live.max_ttl is 'The longest that extensions may make this life, counted from running. Copied from agent by submit.';
comment on column sundown.agent_live.grace is 'Time between the stop signal and SIGKILL. Copied from agent by submit.';
comment on column sundown.agent_live.start_timeout is 'Time from placement by which its container must run. Copied from agent by submit.';

comment on column sundown.agent_outcome.id is 'The agent. That it is the primary key is the promise of one end.';
comment on column sundown.agent_outcome.host is 'Where it was placed, as a number of sundown.host; 0: nowhere. The host may be forgotten since.';
comment on column sundown.agent_outcome.container_id is 'Its container, which is gone; null: none was recorded.';
comment on column sundown.agent_outcome.oom_killed is 'As Docker reported it; null: it reported nothing, or there was no container.';
comment on column sundown.agent_outcome.error is 'The last error of the work on it, in words; null: none.';
comment on column sundown.agent_outcome.ttl is 'The effective ttl: as asked, or as last extended.';
comment on column sundown.agent_outcome.attempts is 'Claims of its last step.';
comment on column sundown.agent_outcome.epoch is 'The fence as it was at the end.';
comment on column sundown.agent_outcome.expires_at is 'Its deadline; null: it never had a place.';
comment on column sundown.agent_outcome.placed_at is 'When it was placed on its host; null: never.';
comment on column sundown.agent_outcome.started_at is 'When its container was found running: its ttl counted from here; null: it never ran.';
comment on column sundown.agent_outcome.signalled_at is 'When the stop signal was about to be sent; null: none was.';
comment on column sundown.agent_outcome.killed_at is 'When SIGKILL was about to be sent; null: the stop signal was enough, or none was needed.';

comment on column sundown.agent_secret.id is 'The agent. No row: it has no environment, or has ended.';
comment on column sundown.agent_secret.env is 'Strings by name. Written by submit.';

comment on column sundown.agent_log.id is 'The agent. No row: it had no container, or its log could not be read.';
comment on column sundown.agent_log.tail is 'The bytes as the agent wrote them, both of its streams, at most 64 KiB. Written once, by the first step of the finish.';
comment on column sundown.agent_log.taken_at is 'When its end was seen.';

comment on column sundown.event.at is 'When it was written, by the database''s clock; of transactions that overlap, not the order.';
comment on column sundown.event.id is 'The agent.';
comment on column sundown.event.state is 'The state after.';
comment on column sundown.event.reason is 'Why it ends or ended; null before that is decided.';
comment on column sundown.event.actor is 'Who did it, where somebody is named: the role that submitted, whoever asked for the end, or sundown itself at the deadline.';
comment on column sundown.event.host is 'Where it is placed, as a number of sundown.host; 0: nowhere yet.';
comment on column sundown.event.epoch is 'The fence after it.';
comment on column sundown.event.container_id is 'Its container, once that is recorded.';
comment on column sundown.event.expires_at is 'Its deadline after it; null: it has no place yet.';
comment on column sundown.event.exit_code is 'As Docker reported it; only with an end.';

comment on column sundown.agent_key.tenant is 'Whose key: two tenants may use the same one.';
comment on column sundown.agent_key.key is 'As it was given: the header Idempotency-Key, or the parameter key of submit.';
comment on column sundown.agent_key.id is 'The agent that was submitted under it.';
comment on column sundown.agent_key.until is 'Until when a repetition is recognised: a day from the first. Forgotten by upkeep after that.';

comment on column sundown.host.id is 'The number by which rows and `sundown host` name it. Never used again.';
comment on column sundown.host.uuid is 'The name of the host in its volume sundown-host-<installation>: a daemon''s own id is shared by clones.';
comment on column sundown.host.seen_at is 'When a replica last reached it. Written by whoever registers or keeps it.';

comment on column sundown.host_slot.host is 'The host. A row of its own beside sundown.host, because it is locked by every placement.';

comment on column sundown.keeper.host is 'The host that is watched.';
comment on column sundown.keeper.replica is 'Who watches it.';
comment on column sundown.keeper.until is 'When the keeping runs out unless it is renewed. Written by the tick.';

comment on column sundown.replica.id is 'The number by which leases and keepers name it.';
comment on column sundown.replica.name is 'The name of its machine; a sweep is marked as one. For people.';
comment on column sundown.replica.release is 'The release that it runs.';
comment on column sundown.replica.hosts is 'The hosts within its reach. Written by the tick.';
comment on column sundown.replica.started_at is 'When it registered.';
comment on column sundown.replica.seen_at is 'When it last said that it lives. Written by the tick.';

comment on column sundown.agents.id is 'UUIDv7 from the database''s clock, so ids sort by submission.';
comment on column sundown.agents.name is 'For people; need not be unique.';
comment on column sundown.agents.tenant is 'On whose behalf.';
comment on column sundown.agents.state is 'pending, running, terminating; or how it ended: succeeded, failed, expired.';
comment on column sundown.agents.reason is 'Why it ends or ended; null while it lives and nobody has decided to end it.';
comment on column sundown.agents.image is 'As given.';
comment on column sundown.agents.command is 'Arguments to the image''s entrypoint; empty: the image''s own.';
comment on column sundown.agents.labels is 'Strings by name, for finding agents.';
comment on column sundown.agents.ttl is 'The effective time to live, counted from running: as asked, or as last extended.';
comment on column sundown.agents.max_ttl is 'The longest that extensions may make its life, counted from running.';
comment on column sundown.agents.grace is 'Time between the stop signal and SIGKILL.';
comment on column sundown.agents.run_at is 'Not to be started before; null: at once.';
comment on column sundown.agents.created_at is 'When it was submitted.';
comment on column sundown.agents.started_at is 'When its container was found running; null: it does not run yet, or never did.';
comment on column sundown.agents.expires_at is 'The deadline: the stop signal goes out then. Provisional until it runs; null: it waits for a place, or never had one.';
comment on column sundown.agents.finished_at is 'When its end was written: its container is gone by then; null: it has not ended.';
comment on column sundown.agents.exit_code is 'As Docker reported it; 137 and 143 are SIGKILL and SIGTERM.';
comment on column sundown.agents.error is 'The last error of the work on it, in words.';
comment on column sundown.agents.host is 'What the daemon calls the machine of its host; null: it has no place, or the host was forgotten.';
comment on column sundown.agents.container_id is 'Its container, once that is recorded.';
comment on column sundown.agents.attempts is 'Claims of the present or last step (start, signal, kill, clean-up).';
comment on column sundown.agents.env_keys is 'Names of the environment variables; values are never shown.';

comment on column sundown.overdue.id is 'The agent.';
comment on column sundown.overdue.state is 'pending, running or terminating.';
comment on column sundown.overdue.reason is 'Why Sundown ends it; null: nobody has decided to.';
comment on column sundown.overdue.host is 'What the daemon calls the machine of its host.';
comment on column sundown.overdue.due_at is 'When somebody should look at it, or should have. Every try puts it off.';
comment on column sundown.overdue.expires_at is 'Its deadline.';
comment on column sundown.overdue.attempts is 'Claims of the present step so far.';
comment on column sundown.overdue.error is 'What went wrong at the last try, in words.';
comment on column sundown.overdue.late is 'For how long it should have been looked at, or been over.';
comment on column sundown.overdue.what is 'What is wrong, in a sentence.';

comment on column sundown.events.at is 'When it was written, by the database''s clock; of transactions that overlap, not the order.';
comment on column sundown.events.id is 'The agent.';
comment on column sundown.events.kind is 'state: it changed state; extended: its deadline was moved.';
comment on column sundown.events.was is 'The state before; null for a submission.';
comment on column sundown.events.state is 'The state after.';
comment on column sundown.events.reason is 'Why it ends or ended; null before that is decided.';
comment on column sundown.events.actor is 'Who did it, where somebody is named: the role that submitted, whoever asked for the end, or sundown itself at the deadline.';
comment on column sundown.events.host is 'What the daemon calls the machine of its host; null: it has no place, or the host was forgotten.';
comment on column sundown.events.epoch is 'The fence after it.';
comment on column sundown.events.container_id is 'Its container, once that is recorded.';
comment on column sundown.events.expires_at is 'Its deadline after it.';
comment on column sundown.events.exit_code is 'As Docker reported it; only with an end.';
comment on column sundown.events.xid is 'The transaction that did it: the first half of the cursor.';
comment on column sundown.events.seq is 'Order within a transaction: the second half of the cursor.';

comment on column sundown.hosts.id is 'The number by which `sundown host` names it.';
comment on column sundown.hosts.name is 'What the daemon calls its machine.';
comment on column sundown.hosts.uuid is 'The name of the host in its volume sundown-host-<installation>.';
comment on column sundown.hosts.endpoint is 'How the replica that last registered it reaches it.';
comment on column sundown.hosts.capacity is 'How many agents it may carry.';
comment on column sundown.hosts.used is 'How many it carries: placed and not ended.';
comment on column sundown.hosts.free is 'How many more it may carry. A cordoned one is given none all the same.';
comment on column sundown.hosts.cordoned is 'No new agents; those that it has live on.';
comment on column sundown.hosts.seen_at is 'When a replica last reached it.';
comment on column sundown.hosts.keeper is 'The replica that watches it; null: none at the moment.';

comment on column sundown.replicas.id is 'One for each start of a process.';
comment on column sundown.replicas.name is 'The name of its machine; a sweep is marked as one.';
comment on column sundown.replicas.release is 'The release that it runs.';
comment on column sundown.replicas.listening is 'Whether notifications reach it; if not, it polls.';
comment on column sundown.replicas.started_at is 'When it registered.';
comment on column sundown.replicas.seen_at is 'When it last said that it lives.';
comment on column sundown.replicas.alive is 'Whether that was within the last ten seconds.';
comment on column sundown.replicas.hosts is 'The hosts within its reach, by name.';

comment on column sundown.lateness.id is 'The agent. Only those that Sundown ended, and that had a place.';
comment on column sundown.lateness.reason is 'ttl_expired: its deadline came; terminated: somebody asked for its end.';
comment on column sundown.lateness.host is 'What the daemon calls the machine of its host; null: the host was forgotten.';
comment on column sundown.lateness.finished_at is 'When its end was written: its container is gone by then.';
