//! Claims about what parses and what is refused, on both sides of each bound.

use super::*;

fn code(body: &str) -> String {
    match Submission::parse(body.as_bytes()) {
        Err(Error::Refused(refusal)) => {
            assert!(!refusal.hint.is_empty() && !refusal.message.is_empty(), "{refusal:?}");
            refusal.code
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it parsed"),
    }
}

fn with(field: &str, value: &str) -> String {
    format!(r#"{{"image":"a","{field}":{value}}}"#)
}

fn ok(field: &str, value: &str) -> Submission {
    Submission::parse(with(field, value).as_bytes()).unwrap()
}

#[test]
fn durations_are_read_as_people_write_them() {
    for (text, expected) in [
        ("90s", 90.0),
        ("1h30m", 5400.0),
        ("1d", 86400.0),
        ("PT15M", 900.0),
        ("P1DT1S", 86401.0),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("0s", 0.0),
        ("-5s", -5.0),
        (" 10 s ", 10.0),
        ("2w", 1_209_600.0),
        ("3200000000", 3.2e9),
        ("-3200000000", -3.2e9),
        ("1.5s", 1.5),
    ] {
        assert_eq!(seconds(text), Ok(expected), "{text}");
    }
    for text in [
        "",
        "s",
        "90x",
        "NaN",
        "inf",
        "-infinity",
        "1e300",
        "3200000001",
        "-3200000001",
        "1 year",
        "1mo",
        "99999999999999999999 h",
        "ten minutes",
    ] {
        assert!(seconds(text).is_err(), "{text}");
    }
}

#[test]
fn a_duration_may_be_a_number_or_a_string() {
    assert_eq!(ok("ttl", "1.5").ttl, Some(1.5));
    assert_eq!(ok("ttl", "\"90s\"").ttl, Some(90.0));
    assert_eq!(ok("grace", "-1").grace, Some(-1.0), "bounds are judged by SQL");
    assert_eq!(ok("max_ttl", "null").max_ttl, None);
    for field in ["ttl", "max_ttl", "grace", "start_timeout", "queue_timeout"] {
        for value in ["1e300", "1e999", "3200000001", "-3200000001", "\"soon\"", "\"NaN\"", "\"\\u0000\""] {
            assert_eq!(code(&with(field, value)), format!("invalid_{field}"), "{value}");
        }
        for value in ["true", "[]", "{}"] {
            assert_eq!(code(&with(field, value)), "invalid_body", "{value}");
        }
    }
}

#[test]
fn memory_takes_bytes_and_binary_units() {
    for (value, expected) in [
        ("67108864", 67_108_864),
        ("\"64m\"", 67_108_864),
        ("\"64MiB\"", 67_108_864),
        ("\"1g\"", 1 << 30),
        ("\"1 GB\"", 1 << 30),
        ("\"512\"", 512),
        ("9223372036854775807", i64::MAX),
        ("\"8388607t\"", 8_388_607 << 40),
    ] {
        assert_eq!(ok("memory", value).memory, Some(expected), "{value}");
    }
    for value in ["9223372036854775808", "\"8388608t\"", "\"1.5g\"", "\"m\"", "\"\"", "1.5", "\"64é\"", "\"64x\"", "-", "1e3"] {
        let expected = if value == "-" { "invalid_json" } else { "invalid_memory" };
        assert_eq!(code(&with("memory", value)), expected, "{value}");
    }
}

#[test]
fn counts_outside_of_their_type_are_refused() {
    assert_eq!(ok("pids", "2147483647").pids, Some(i32::MAX));
    assert_eq!(code(&with("pids", "2147483648")), "invalid_pids");
    assert_eq!(code(&with("pids", "1.5")), "invalid_pids");
    assert_eq!(code(&with("pids", "\"7\"")), "invalid_body");
    assert_eq!(ok("cpus", "0.5").cpus, Some(0.5));
    assert_eq!(code(&with("cpus", "\"0.5\"")), "invalid_body");
}

#[test]
fn run_at_is_an_instant_with_an_offset() {
    assert_eq!(ok("run_at", "\"2026-01-31T18:00:00+02:00\"").run_at.as_deref(), Some("2026-01-31T16:00:00Z"));
    for value in ["\"tomorrow\"", "\"2026-01-31T18:00:00\"", "\"1969-12-31T23:59:59Z\"", "\"-000001-01-01T00:00:00Z\"", "\"\""] {
        assert_eq!(code(&with("run_at", value)), "invalid_run_at", "{value}");
    }
    assert_eq!(ok("run_at", "\"1970-01-01T00:00:00Z\"").run_at.as_deref(), Some("1970-01-01T00:00:00Z"));
    assert_eq!(code(&with("run_at", "5")), "invalid_body");
}

#[test]
fn shapes_are_refused_with_the_name_of_the_field() {
    assert_eq!(code("{}"), "missing_image");
    assert_eq!(code(r#"{"image":null}"#), "missing_image");
    assert_eq!(code(r#"{"image":""}"#), "missing_image");
    assert_eq!(code(r#"{"image":5}"#), "invalid_body");
    for value in ["\"ls\"", "[1]", "[[\"a\"]]", "[null]", "{}"] {
        assert_eq!(code(&with("command", value)), "invalid_body", "{value}");
    }
    for field in ["labels", "env"] {
        for value in ["[]", "\"a=b\"", r#"{"a":1}"#, r#"{"a":null}"#, r#"{"a":{}}"#] {
            assert_eq!(code(&with(field, value)), "invalid_body", "{value}");
        }
    }
    for body in ["", "{", "nul", "{\"image\":\"a\"} x", "{'image':'a'}", "{\"image\":\"a\",}", "image=a"] {
        let expected = if body == "nul" { "invalid_body" } else { "invalid_json" };
        assert_eq!(code(body), expected, "{body}");
    }
    for body in ["[]", "[\"a\"]", "\"a\"", "5", "null", "true"] {
        assert_eq!(code(body), "invalid_body", "{body}");
    }
    assert_eq!(code(r#"{"image":"\ud800"}"#), "invalid_body");
    assert!(matches!(Submission::parse(b"{\"image\":\"\xff\"}"), Err(Error::Refused(r)) if r.code == "invalid_utf8"));
}

#[test]
fn unknown_and_repeated_fields_are_refused_and_named() {
    let Err(Error::Refused(unknown)) = Submission::parse(br#"{"image":"a","imag":"b"}"#) else { panic!() };
    assert_eq!((unknown.code.as_str(), unknown.message.as_str()), ("unknown_field", "unknown field `imag`"));
    assert!(unknown.hint.contains("queue_timeout"), "{}", unknown.hint);
    assert_eq!(code(r#"{"image":"a","image":"b"}"#), "duplicate_field");
    assert_eq!(code(r#"{"image":null,"image":"b"}"#), "duplicate_field");
    assert_eq!(code(&with("env", r#"{"A":"1","A":"2"}"#)), "duplicate_field");
    assert_eq!(code(&with("labels", r#"{"a":"1","\u0061":"2"}"#)), "duplicate_field");
    let endless = format!(r#"{{"{}":1}}"#, "x".repeat(100_000));
    let Err(Error::Refused(long)) = Submission::parse(endless.as_bytes()) else { panic!() };
    assert!(long.message.len() < 300 && long.code == "unknown_field");
}

#[test]
fn nul_is_refused_wherever_it_stands() {
    for body in [
        r#"{"image":"a\u0000"}"#,
        r#"{"image":"a","name":"\u0000"}"#,
        r#"{"image":"a","network":"\u0000"}"#,
        r#"{"image":"a","command":["\u0000"]}"#,
        r#"{"image":"a","env":{"A":"\u0000"}}"#,
        r#"{"image":"a","env":{"\u0000":""}}"#,
        r#"{"image":"a","labels":{"a\u0000":""}}"#,
    ] {
        assert_eq!(code(body), "invalid_text", "{body}");
    }
    assert_eq!(ok("command", r#"["\\u0000"]"#).command, ["\\u0000"], "a backslash is no NUL");
}

#[test]
fn a_refusal_never_repeats_a_value() {
    for body in [with("env", r#"{"A":{"s3cret":1}}"#), with("env", "\"s3cret\""), with("ttl", "\"s3cret\""), with("memory", "\"s3cret\"")] {
        let Err(error) = Submission::parse(body.as_bytes()) else { panic!("{body}") };
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[test]
fn nesting_is_no_recursion() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(code(&with("command", &deep)), "invalid_body");
    assert_eq!(code(&with("zzz", &deep)), "unknown_field");
}

#[test]
fn an_extension_has_a_ttl_and_nothing_else() {
    assert!(matches!(extension(br#"{"ttl":"10m"}"#), Ok(ttl) if (ttl - 600.0).abs() < 1e-9));
    for (body, expected) in [
        ("{}", "missing_ttl"),
        (r#"{"ttl":null}"#, "missing_ttl"),
        (r#"{"ttl":[]}"#, "invalid_body"),
        (r#"{"ttl":"x"}"#, "invalid_ttl"),
        (r#"{"ttl":1,"grace":2}"#, "unknown_field"),
        (r#"{"ttl":1,"ttl":2}"#, "duplicate_field"),
        ("", "invalid_json"),
        ("[1]", "invalid_body"),
    ] {
        assert!(matches!(extension(body.as_bytes()), Err(Error::Refused(r)) if r.code == expected), "{body}");
    }
}
