insert into bare.job (image, command, ttl) values ('busybox', '{sleep,inf}', '1 hour');
