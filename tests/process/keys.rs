//! A list of every key of the configuration, each with a test that observes the key's effect on a running daemon.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tests::Lab;

/// Each key as a path, in which `*` stands for any name or item, with its test as `module::name`. A key may have
/// several entries. A key that only contains other keys is not listed, since their tests cover it.
const TESTED: &[(&str, &str)] = &[
    ("access_log.format", "access_log::the_json_format_has_one_object_per_request_with_every_field"),
    ("access_log.path", "access_log::sigusr1_reopens_the_access_log_and_loses_no_line"),
    ("ca_file", "server_keys::ca_file_is_trusted_by_pools_without_their_own_ca"),
    ("client_bind_to_ipv4", "server_keys::connections_to_backends_come_from_the_configured_address"),
    ("client_bind_to_ipv6", "server_keys::connections_to_ipv6_backends_come_from_the_configured_address"),
    ("control.socket", "control::the_key_socket_sets_the_path_of_the_control_socket"),
    ("daemon", "server_keys::the_key_daemon_has_the_effect_of_the_option"),
    (
        "error_log",
        "quickstart::a_daemon_writes_its_pid_file_and_error_log_and_removes_the_pid_file_when_it_ends",
    ),
    ("group", "server_keys::user_and_group_set_the_ids_of_the_process"),
    ("listener_tasks_per_fd", "server_keys::listener_tasks_per_fd_sets_the_number_of_tasks_that_accept"),
    ("listeners.*.address", "routing::tcp_and_unix_listeners_have_their_own_routes"),
    ("listeners.*.address", "forms::a_listener_may_be_an_address_alone"),
    ("listeners.*.limits.body", "clients::a_body_above_the_limit_is_413_before_it_is_read"),
    ("listeners.*.limits.connections", "clients::a_connection_above_the_limit_waits_until_another_one_ends"),
    ("listeners.*.limits.fields", "clients::more_fields_than_the_limit_are_431"),
    ("listeners.*.limits.head", "clients::a_head_above_the_limit_is_431"),
    ("listeners.*.limits.requests", "clients::the_last_request_that_the_limit_allows_closes_the_connection"),
    ("listeners.*.limits.target", "clients::a_target_above_the_limit_is_414"),
    ("listeners.*.min_rate", "clients::an_upload_below_the_lowest_speed_is_408"),
    ("listeners.*.timeouts.body", "clients::a_pause_in_a_body_that_is_longer_than_its_timeout_is_408"),
    ("listeners.*.timeouts.head", "clients::a_head_that_takes_longer_than_its_timeout_is_408"),
    ("listeners.*.timeouts.idle", "clients::a_connection_without_a_request_ends_after_the_idle_timeout"),
    ("listeners.*.name", "routing::tcp_and_unix_listeners_have_their_own_routes"),
    ("listeners.*.mode", "reload::a_reload_changes_the_mode_of_a_unix_listener_and_keeps_its_connections"),
    ("listeners.*.mode", "reload::a_user_without_permission_for_the_socket_cannot_connect"),
    ("log_level", "logs::log_level_applies_until_a_reload_an_operator_or_rust_log_overrides_it"),
    ("metrics.address", "metrics::endpoints_respond_as_documented_and_anything_else_is_404_or_405"),
    (
        "pid_file",
        "quickstart::a_daemon_writes_its_pid_file_and_error_log_and_removes_the_pid_file_when_it_ends",
    ),
    ("pools.*.backends.*.address", "proxying::weights_give_the_smooth_round_robin_sequence"),
    ("pools.*.backends.*.address", "forms::localhost_is_a_backend_in_the_file_and_on_the_command_line"),
    (
        "pools.*.backends.*.address",
        "unix_backends::requests_and_checks_of_each_type_reach_backends_on_unix_sockets",
    ),
    ("pools.*.backends.*.backup", "balancing::backups_are_used_only_when_no_other_backend_is_available"),
    ("pools.*.backends.*.max_requests", "limits::a_backend_has_its_own_limit_or_that_of_the_pool"),
    ("pools.*.backends.*.weight", "proxying::weights_give_the_smooth_round_robin_sequence"),
    ("pools.*.bounded_load", "balancing::bounded_load_spreads_a_popular_key"),
    ("pools.*.hash_on.cookie", "balancing::hash_on_decides_which_part_of_a_request_is_its_key"),
    ("pools.*.hash_on.header", "balancing::hash_on_decides_which_part_of_a_request_is_its_key"),
    ("pools.*.hash_on.query", "balancing::hash_on_decides_which_part_of_a_request_is_its_key"),
    ("pools.*.health_check.expect_body", "health::http_checks_pass_when_the_body_contains_the_expected_text"),
    ("pools.*.health_check.expect_status", "health::http_checks_pass_when_the_status_is_expected"),
    (
        "pools.*.health_check.fall",
        "health::a_backend_goes_down_after_fall_failures_and_comes_back_after_rise_successes",
    ),
    (
        "pools.*.health_check.fast_interval",
        "health::checks_are_sent_at_the_fast_interval_while_the_state_changes",
    ),
    ("pools.*.health_check.host", "health::http_checks_send_what_is_configured"),
    ("pools.*.health_check.interval", "health::checks_are_sent_at_the_interval"),
    ("pools.*.health_check.jitter", "health::jitter_spreads_the_checks"),
    ("pools.*.health_check.method", "health::http_checks_send_what_is_configured"),
    ("pools.*.health_check.path", "health::http_checks_send_what_is_configured"),
    ("pools.*.health_check.port", "health::checks_go_to_the_port_that_the_key_names"),
    (
        "pools.*.health_check.rise",
        "health::a_backend_goes_down_after_fall_failures_and_comes_back_after_rise_successes",
    ),
    ("pools.*.health_check.service", "grpc_health::service_names_the_service_to_check"),
    ("pools.*.health_check.timeout", "health::a_check_fails_when_it_times_out"),
    ("pools.*.health_check.type", "health::the_type_none_sends_no_checks"),
    ("pools.*.host", "proxying::a_backend_gets_the_host_of_the_client_unless_the_pool_sets_one"),
    (
        "pools.*.outlier_detection.base_ejection",
        "resilience::each_consecutive_ejection_lasts_longer_up_to_the_maximum",
    ),
    (
        "pools.*.outlier_detection.consecutive_failures",
        "resilience::consecutive_failures_of_any_kind_eject_a_backend",
    ),
    (
        "pools.*.outlier_detection.slow_backends.min_samples",
        "resilience::a_backend_that_is_much_slower_than_the_others_is_ejected",
    ),
    (
        "pools.*.outlier_detection.slow_backends.ratio",
        "resilience::a_backend_that_is_much_slower_than_the_others_is_ejected",
    ),
    (
        "pools.*.outlier_detection.slow_backends.window",
        "resilience::a_backend_that_is_much_slower_than_the_others_is_ejected",
    ),
    (
        "pools.*.outlier_detection.max_ejected_percent",
        "resilience::the_ejected_share_stays_below_its_limit_and_one_backend_always_remains",
    ),
    (
        "pools.*.outlier_detection.max_ejection",
        "resilience::each_consecutive_ejection_lasts_longer_up_to_the_maximum",
    ),
    (
        "pools.*.limits.max_requests",
        "limits::a_backend_never_exceeds_its_limit_and_all_queued_requests_are_served",
    ),
    ("pools.*.limits.queue", "limits::a_request_is_rejected_at_once_when_the_queue_is_full"),
    (
        "pools.*.panic_threshold",
        "resilience::panic_threshold_sets_the_share_of_available_backends_below_which_all_are_used",
    ),
    ("pools.*.policy", "proxying::weights_give_the_smooth_round_robin_sequence"),
    ("pools.*.policy", "balancing::random_draws_by_weight_and_in_no_fixed_order"),
    ("pools.*.policy", "balancing::least_request_avoids_a_busy_backend"),
    ("pools.*.policy", "balancing::peak_ewma_moves_away_from_a_backend_that_became_slow"),
    (
        "pools.*.policy",
        "balancing::consistent_hash_places_keys_as_nginx_does_and_moves_only_those_of_a_lost_backend",
    ),
    ("pools.*.policy", "balancing::maglev_places_keys_identically_after_a_restart_and_on_every_instance"),
    ("pools.*.retries.attempts", "proxying::each_backend_gets_one_attempt_and_attempts_limits_the_retries"),
    ("pools.*.retries.budget_percent", "retries::retries_during_an_outage_stay_within_the_budget"),
    (
        "pools.*.retries.connect_race",
        "connect_races::connect_race_sets_the_time_after_which_a_connection_is_raced",
    ),
    ("pools.*.retries.connect_race", "connect_races::nothing_is_raced_when_connect_race_is_0s"),
    ("pools.*.retries.min_concurrent", "retries::min_concurrent_retries_are_allowed_whatever_the_budget"),
    ("pools.*.retries.when", "retries::only_the_failures_that_when_lists_are_retried"),
    ("pools.*.retries.per_try", "retries::a_hanging_attempt_is_retried_after_per_try"),
    ("pools.*.slow_start", "balancing::slow_start_ramps_a_recovered_backend_up_from_a_tenth_of_its_share"),
    (
        "pools.*.sticky.cookie",
        "balancing::sessions_stay_under_every_policy_after_a_restart_and_on_another_instance",
    ),
    (
        "pools.*.sticky.key_file",
        "session_keys::every_instance_with_one_key_signs_and_accepts_the_same_cookies",
    ),
    ("pools.*.sticky.key_file", "session_keys::keys_are_rotated_without_a_reload"),
    ("pools.*.sticky.ttl", "balancing::a_session_cookie_has_the_documented_attributes"),
    (
        "pools.*.timeouts.body",
        "clients::a_pause_in_a_response_ends_after_the_body_timeout_and_is_no_failure_of_the_backend",
    ),
    ("pools.*.timeouts.max_age", "clients::a_connection_to_a_backend_is_not_used_beyond_its_age"),
    ("pools.*.timeouts.tunnel", "clients::a_websocket_may_be_quiet_until_the_tunnel_timeout"),
    ("pools.*.upgrades", "clients::a_pool_can_name_the_protocols_that_clients_switch_to"),
    ("pools.*.timeouts.connect", "proxying::a_connection_to_a_backend_fails_after_the_connect_timeout"),
    ("pools.*.timeouts.idle", "proxying::an_idle_connection_to_a_backend_ends_after_the_idle_timeout"),
    ("pools.*.timeouts.queue", "limits::a_queued_request_is_rejected_after_the_queue_timeout"),
    ("pools.*.timeouts.response", "proxying::the_status_is_504_when_a_backend_times_out"),
    ("pools.*.tls.ca", "proxying::a_certificate_of_an_unknown_authority_is_refused_unless_verify_is_off"),
    (
        "pools.*.tls.client_cert",
        "client_certificates::requests_and_checks_present_the_certificate_of_the_pool",
    ),
    (
        "pools.*.tls.client_cert",
        "client_certificates::a_reload_reads_the_files_again_and_does_not_reuse_connections_with_the_old_certificate",
    ),
    (
        "pools.*.tls.client_key",
        "client_certificates::requests_and_checks_present_the_certificate_of_the_pool",
    ),
    ("pools.*.tls.client_key", "client_certificates::no_output_contains_the_private_key"),
    ("pools.*.tls.sni", "proxying::a_certificate_for_another_name_is_refused"),
    ("pools.*.tls.verify", "proxying::a_certificate_of_an_unknown_authority_is_refused_unless_verify_is_off"),
    ("routes.*.match.header", "routing::methods_and_headers_match"),
    ("routes.*.match.host", "routing::hosts_match_exactly_or_by_wildcard_without_regard_to_case_and_port"),
    ("routes.*.match.host", "routing::one_matching_host_and_path_of_several_suffices"),
    ("routes.*.match.listener", "routing::tcp_and_unix_listeners_have_their_own_routes"),
    ("routes.*.match.method", "routing::methods_and_headers_match"),
    ("routes.*.match.path", "routing::paths_match_exactly_or_by_prefix_of_whole_segments"),
    ("routes.*.match.path", "routing::one_matching_host_and_path_of_several_suffices"),
    ("routes.*.match.path_prefix", "routing::one_matching_host_and_path_of_several_suffices"),
    ("routes.*.match.path_prefix", "routing::paths_match_exactly_or_by_prefix_of_whole_segments"),
    ("routes.*.pool", "routing::the_first_matching_route_wins_and_no_matching_route_is_404"),
    ("readiness.pools", "health::readiness_depends_on_the_pools_that_the_key_selects"),
    ("reload.rollback.error_rate", "reload::a_reload_is_rolled_back_when_requests_fail"),
    ("reload.rollback.window", "reload::no_rollback_happens_after_its_window"),
    ("reload.watch", "reload::a_watched_file_is_reloaded_however_it_is_replaced"),
    ("shutdown.delay", "quickstart::the_shutdown_delay_serves_traffic_while_not_ready"),
    ("shutdown.drain", "quickstart::a_drain_that_times_out_exits_with_3"),
    ("threads", "server_keys::threads_sets_the_number_of_threads_that_serve"),
    ("trusted_proxies", "proxying::x_forwarded_headers_of_a_trusted_proxy_are_kept"),
    ("upgrade_sock", "upgrade::the_old_process_stays_until_its_last_request_ends"),
    ("upstream_keepalive_pool_size", "server_keys::the_pool_size_limits_the_idle_connections_to_backends"),
    ("user", "server_keys::user_and_group_set_the_ids_of_the_process"),
    ("version", "server_keys::version_accepts_only_1"),
    ("work_stealing", "server_keys::without_work_stealing_each_thread_has_its_own_event_queue"),
    ("working_directory", "server_keys::working_directory_sets_the_directory_of_the_process"),
];

#[test]
fn every_key_of_the_schema_has_a_test_and_every_tested_key_exists() {
    let printed = Lab::new().run(&["schema"]);
    let schema: Value = serde_json::from_str(&printed.stdout).expect("a schema is JSON");
    let mut keys = BTreeSet::new();
    collect(&schema, &schema, "", &mut keys);
    let holds_others = |key: &String| keys.iter().any(|other| other.starts_with(&format!("{key}.")));
    let known: BTreeSet<&str> = keys.iter().filter(|key| !holds_others(key)).map(String::as_str).collect();
    let tested: BTreeSet<&str> = TESTED.iter().map(|(key, _)| *key).collect();
    let untested: Vec<_> = known.difference(&tested).collect();
    assert!(untested.is_empty(), "keys without a test: {untested:?}");
    let unknown: Vec<_> = tested.difference(&known).collect();
    assert!(unknown.is_empty(), "tests of keys that do not exist: {unknown:?}");
}

#[test]
fn every_test_that_a_key_names_exists() {
    for (key, test) in TESTED {
        let (module, name) = test.split_once("::").expect("a test is named module::name");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("process/{module}.rs"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let function = format!("fn {name}() {{");
        let exists = lines.windows(2).any(|pair| pair[0] == "#[test]" && pair[1] == function);
        assert!(exists, "{key}: there is no test {test}");
    }
}

/// Adds the keys of a schema, below `path`.
fn collect(root: &Value, schema: &Value, path: &str, keys: &mut BTreeSet<String>) {
    let schema = resolve(root, schema);
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    // The old name of a renamed key is tested under its new name.
    let is_old = |value: &Value| value["deprecated"] == true;
    for (key, value) in
        schema["properties"].as_object().into_iter().flatten().filter(|(_, value)| !is_old(value))
    {
        keys.insert(below(key));
        collect(root, value, &below(key), keys);
    }
    for part in ["items", "additionalProperties"] {
        if let Some(part) = schema.get(part) {
            collect(root, part, &below("*"), keys);
        }
    }
    for part in schema["patternProperties"].as_object().into_iter().flat_map(|parts| parts.values()) {
        collect(root, part, &below("*"), keys);
    }
    for part in ["anyOf", "oneOf", "allOf"] {
        for part in schema[part].as_array().into_iter().flatten() {
            collect(root, part, path, keys);
        }
    }
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let pointer = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    pointer.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}
