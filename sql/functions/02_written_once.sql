-- Rows that are written once: what was asked, how it ended, what happened. Row-level, so that each partition has it too.
create or replace function sundown.written_once() returns trigger
language plpgsql as $$
begin
    raise exception using errcode = 'SD403', constraint = 'written_once',
        message = format('%s of %s is refused: its rows are written once', tg_op, tg_argv[0]),
        hint = case tg_argv[0] when 'sundown.agent_outcome' then 'An agent ends once. Submit a new one.'
                               else 'Use sundown.submit, sundown.terminate and sundown.extend.' end;
end $$;

create or replace trigger written_once before update or delete on sundown.agent
    for each row execute function sundown.written_once('sundown.agent');
create or replace trigger written_once before update or delete on sundown.agent_outcome
    for each row execute function sundown.written_once('sundown.agent_outcome');
create or replace trigger written_once before update or delete on sundown.event
    for each row execute function sundown.written_once('sundown.event');

create or replace trigger stays before delete on sundown.installation
    for each row execute function sundown.written_once('sundown.installation');
create or replace trigger not_emptied before truncate on sundown.installation
    for each statement execute function sundown.written_once('sundown.installation');
create or replace trigger not_emptied before truncate on sundown.agent
    for each statement execute function sundown.written_once('sundown.agent');
create or replace trigger not_emptied before truncate on sundown.agent_outcome
    for each statement execute function sundown.written_once('sundown.agent_outcome');
create or replace trigger not_emptied before truncate on sundown.event
    for each statement execute function sundown.written_once('sundown.event');
create or replace trigger not_emptied before truncate on sundown.agent_live
    for each statement execute function sundown.written_once('sundown.agent_live');
comment on function sundown.written_once() is 'Trigger: refuses every change of rows that are written once.';
