-- Each client ends its own share of a crowd. prefix: what their ids begin with; each: how many a client ends; turn: -1.
\set turn :turn + 1
\set number :client_id * :each + :turn
select sundown.terminate((:prefix || lpad(to_hex(:number::bigint), 12, '0'))::uuid, actor => 'pgbench', notify => 'never');
