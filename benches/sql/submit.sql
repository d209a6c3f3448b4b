-- notify: whether replicas are told.
select sundown.submit(image => 'busybox', command => array['sleep', 'inf'], ttl => '1 hour', notify => :notify);
