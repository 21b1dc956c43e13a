//! What the broker says of its own keys: their types, defaults, and which of them it takes while it runs.
//!
//! Read from the page that a test of the broker writes from the broker's table, because nothing here may depend on the broker.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Every key of `broker.conf` that means something to the broker.
const PAGE: &str = include_str!("../../../docs/broker-keys.md");
/// In the page's fourth column, of a key that request 25 changes.
const AT_ONCE: &str = "at once";

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// `int`, `long`, `boolean`, `string`, `enum`, `port`.
    pub kind: &'static str,
    pub default: &'static str,
    /// Whether a change needs no restart.
    pub dynamic: bool,
}

static KEYS: LazyLock<BTreeMap<&'static str, Key>> = LazyLock::new(|| {
    PAGE.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let (name, kind, default, change) =
                (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
            let is_row = !name.starts_with('-') && name != "Key";
            is_row.then_some((
                name,
                Key {
                    kind,
                    default,
                    dynamic: change == AT_ONCE,
                },
            ))
        })
        .collect()
});

/// A key of the broker, by upstream's name.
pub fn broker_key(name: &str) -> Option<&'static Key> {
    KEYS.get(name)
}

/// Whether the broker takes a change of the key while it runs.
pub fn is_dynamic(name: &str) -> bool {
    broker_key(name).is_some_and(|key| key.dynamic)
}

/// Why a value cannot be one of this key; `None` as well for keys that the broker does not know, of which it warns.
pub fn problem(name: &str, value: &str) -> Option<String> {
    let value = value.trim();
    let fits = match broker_key(name)?.kind {
        "int" => value.parse::<i32>().is_ok(),
        "long" => value.parse::<i64>().is_ok(),
        "port" => value.parse::<u16>().is_ok(),
        "boolean" => value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false"),
        _ => true,
    };
    let expected = match broker_key(name)?.kind {
        "int" => "a whole number of 32 bits",
        "long" => "a whole number of 64 bits",
        "port" => "a port number (0 to 65535)",
        _ => "true or false",
    };
    (!fits).then(|| format!("\"{value}\" is not {expected}"))
}

/// Whether a broker that reports `running` runs with `wanted`.
pub fn same(name: &str, wanted: &str, running: &str) -> bool {
    match broker_key(name).map(|key| key.kind) {
        Some("boolean") => wanted.trim().eq_ignore_ascii_case(running.trim()),
        Some("int" | "long" | "port") => {
            wanted.trim().parse::<i64>().ok() == running.trim().parse::<i64>().ok()
        }
        _ => wanted.trim() == running.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_understood() {
        assert_eq!(
            broker_key("fileReservedTime"),
            Some(&Key {
                kind: "int",
                default: "72",
                dynamic: true
            })
        );
        assert!(!is_dynamic("brokerRole") && !is_dynamic("flushDiskType"));
        assert!(!is_dynamic("no such key") && broker_key("Key").is_none());
        let dynamic = KEYS.iter().filter(|(_, key)| key.dynamic);
        assert!(dynamic.clone().count() > 30);
        for (name, key) in dynamic {
            assert_eq!(problem(name, key.default), None, "{name}");
            assert!(same(name, key.default, key.default), "{name}");
        }
    }

    #[test]
    fn values_that_cannot_be() {
        for (name, value, says) in [
            (
                "fileReservedTime",
                "soon",
                Some("a whole number of 32 bits"),
            ),
            ("fileReservedTime", "48", None),
            ("traceOn", "TRUE", None),
            ("traceOn", "yes", Some("true or false")),
            ("regionId", "anything", None),
            ("nobodyKnowsThis", "x", None),
        ] {
            let got = problem(name, value);
            assert_eq!(got.is_some(), says.is_some(), "{name}={value}: {got:?}");
            if let (Some(got), Some(says)) = (got, says) {
                assert!(got.contains(says), "{got}");
            }
        }
    }
}
