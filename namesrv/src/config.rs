//! What a name server can be told: the keys of upstream's `NamesrvConfig` and `NettyServerConfig` that mean something here, and two of ours
//! (`httpPort`, and every key as an environment variable). Order: defaults < file < environment < flag.
//!
//! A key that nobody knows is a warning with the nearest known one; a value of the wrong kind is an error with file, line and key.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use remoting::properties::{self, Properties};

/// Upstream's thread-pool and socket-buffer keys: read without a warning because shipped files hold them, but nothing here is sized by them.
pub const WITHOUT_EFFECT: &[&str] = &[
    "clientRequestThreadPoolNums",
    "clientRequestThreadPoolQueueCapacity",
    "defaultThreadPoolNums",
    "defaultThreadPoolQueueCapacity",
    "serverWorkerThreads",
    "serverCallbackExecutorThreads",
    "serverSelectorThreads",
    "serverOnewaySemaphoreValue",
    "serverAsyncSemaphoreValue",
    "serverSocketSndBufSize",
    "serverSocketRcvBufSize",
    "serverSocketBacklog",
    "serverNettyWorkerGroupEnable",
    "serverPooledByteBufAllocatorEnable",
    "useEpollNativeSelector",
    "writeBufferHighWaterMark",
    "writeBufferLowWaterMark",
    "clusterTest",
    "productEnvName",
    "enableControllerInNamesrv",
    // Part of the answer to 319, so it comes back when that text is edited and sent.
    "configHash",
];

/// Keys that 318 must not change: what they name is fixed at start.
const NOT_UPDATABLE: &[&str] = &[
    "configBlackList",
    "configStorePath",
    "kvConfigPath",
    "rocketmqHome",
];

/// Keys whose new value takes effect only at the next start. 318 refuses them rather than pretend.
const STATIC: &[&str] = &[
    "listenPort",
    "bindAddress",
    "httpPort",
    "serverChannelMaxIdleTimeSeconds",
    "maxConnections",
];

/// A value that a key refuses, told the way the user sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: expected {expected}, found `{found}`")]
pub struct InvalidValue {
    pub key: &'static str,
    pub expected: &'static str,
    pub found: String,
}

/// Why 318 was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    #[error("Can not update config in black list.")]
    BlackListed,
    #[error("{0} takes effect only at start: change the file and restart the name server")]
    Static(String),
    #[error(transparent)]
    Invalid(#[from] InvalidValue),
}

trait Value: Sized {
    const EXPECTED: &'static str;
    fn read(text: &str) -> Option<Self>;
    fn show(&self) -> String;
}

impl Value for String {
    const EXPECTED: &'static str = "a text";
    fn read(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a path";
    fn read(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| PathBuf::from(text))
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";
    fn read(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u16 {
    const EXPECTED: &'static str = "a port from 0 to 65535";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u64 {
    const EXPECTED: &'static str = "a whole number, 0 or more";
    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! namesrv_config {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $default:expr, $key:literal;)*) => {
        /// The effective configuration. Field order is the order of `-p`.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct NamesrvConfig {
            $($(#[doc = $doc])* pub $field: $type,)*
            /// Hash of the file this was loaded from; empty without one. Reported, never set.
            pub config_hash: String,
        }

        impl Default for NamesrvConfig {
            fn default() -> Self {
                Self { $($field: $default,)* config_hash: String::new() }
            }
        }

        impl NamesrvConfig {
            /// Every key that has an effect, with what it means and its default.
            const MEANINGS: &'static [(&'static str, &'static str)] = &[$(($key, concat!($($doc),*)),)*];

            /// Every key that has an effect.
            pub const KEYS: &'static [&'static str] = &[$($key,)*];

            /// Sets one key; `Ok(false)` when there is no such key.
            pub fn set(&mut self, key: &str, value: &str) -> Result<bool, InvalidValue> {
                match key {
                    $($key => match <$type as Value>::read(value) {
                        Some(read) => {
                            self.$field = read;
                            Ok(true)
                        }
                        None => Err(InvalidValue { key: $key, expected: <$type as Value>::EXPECTED, found: value.to_owned() }),
                    },)*
                    _ => Ok(false),
                }
            }

            /// Every key with its value as text.
            pub fn entries(&self) -> Vec<(&'static str, String)> {
                vec![$(($key, self.$field.show()),)*]
            }
        }
    };
}

namesrv_config! {
    /// Default: `$ROCKETMQ_HOME`, or nothing. Only reported; nothing is read from there.
    rocketmq_home: String = String::new(), "rocketmqHome";
    /// Address to listen on. Default: every IPv4 address.
    bind_address: String = "0.0.0.0".to_owned(), "bindAddress";
    /// Default: 9876.
    listen_port: u16 = 9876, "listenPort";
    /// Probes and metrics; 0 = off. Default: 9877.
    http_port: u16 = 9877, "httpPort";
    /// The KV tables. Default: `~/namesrv/kvConfig.json`.
    kv_config_path: PathBuf = home().join("namesrv/kvConfig.json"), "kvConfigPath";
    /// Where 318 writes its changes when no `-c` file was given. Default: `~/namesrv/namesrv.properties`.
    config_store_path: PathBuf = home().join("namesrv/namesrv.properties"), "configStorePath";
    /// Keys that 318 must not change, beside the built-in ones; parted by `;`. Default: none.
    config_black_list: String = String::new(), "configBlackList";
    /// Show `orderTopicConf` in routes. Default: false.
    order_message_enable: bool = false, "orderMessageEnable";
    /// Answer registrations with the order topics. Default: true.
    return_order_topic_config_to_broker: bool = true, "returnOrderTopicConfigToBroker";
    /// How often silent brokers are looked for, ms. Default: 5000.
    scan_not_active_broker_interval: u64 = 5_000, "scanNotActiveBrokerInterval";
    /// How many unregistrations may wait for the next batch. Default: 3000.
    un_register_broker_queue_capacity: u64 = 3_000, "unRegisterBrokerQueueCapacity";
    /// Show the smallest slave as master where a group lost its own. Default: false.
    support_acting_master: bool = false, "supportActingMaster";
    /// Serve 206. Default: true.
    enable_all_topic_list: bool = true, "enableAllTopicList";
    /// Serve the other topic lists. Default: true.
    enable_topic_list: bool = true, "enableTopicList";
    /// Tell a group's members (905) when its smallest broker id changes. Default: false.
    notify_min_broker_id_changed: bool = false, "notifyMinBrokerIdChanged";
    /// Refuse routes during the first `waitSecondsForService`. Default: false.
    need_wait_for_service: bool = false, "needWaitForService";
    /// Default: 45.
    wait_seconds_for_service: u64 = 45, "waitSecondsForService";
    /// A full registration also removes the topics it does not name. Default: false.
    delete_topic_with_broker_registration: bool = false, "deleteTopicWithBrokerRegistration";
    /// A connection without any traffic for so long is closed. Default: 120.
    server_channel_max_idle_time_seconds: u64 = 120, "serverChannelMaxIdleTimeSeconds";
    /// Connections beyond this are closed at once. Default: 16384.
    max_connections: u64 = 16_384, "maxConnections";
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// A complaint about one key that does not keep the name server from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a configuration cannot be used: one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}")]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {source}")]
    Syntax {
        path: PathBuf,
        source: properties::ParseError,
    },
    #[error("{path}, line {line}: {source}")]
    InFile {
        path: PathBuf,
        line: usize,
        source: InvalidValue,
    },
    #[error("environment variable {name}: {source}")]
    InEnvironment { name: String, source: InvalidValue },
}

impl NamesrvConfig {
    /// Defaults, then the file, then the environment.
    pub fn load(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, Vec<Warning>), Error> {
        let mut config = Self::default();
        let mut warnings = Vec::new();
        if let Some(home) = environment("ROCKETMQ_HOME") {
            config.rocketmq_home = home;
        }
        if let Some(path) = file {
            config.config_store_path = path.to_owned();
            let bytes = std::fs::read(path).map_err(|source| Error::Unreadable {
                path: path.to_owned(),
                source,
            })?;
            config.config_hash = properties::config_hash(&bytes);
            let properties = Properties::parse(&bytes).map_err(|source| Error::Syntax {
                path: path.to_owned(),
                source,
            })?;
            for property in properties.iter() {
                let known = config
                    .set(&property.key, &property.value)
                    .map_err(|source| Error::InFile {
                        path: path.to_owned(),
                        line: property.line,
                        source,
                    })?;
                if !known && !WITHOUT_EFFECT.contains(&property.key.as_str()) {
                    warnings.push(unknown_key(
                        &property.key,
                        &format!("{}, line {}: ", path.display(), property.line),
                    ));
                }
            }
        }
        for (key, value) in properties::from_environment(Self::KEYS.iter().copied(), environment) {
            config
                .set(key, &value)
                .map_err(|source| Error::InEnvironment {
                    name: properties::environment_name(key),
                    source,
                })?;
        }
        Ok((config, warnings))
    }

    /// Applies a 318 request: all of it or nothing. Unknown keys are returned as warnings.
    pub fn updated(&self, properties: &Properties) -> Result<(Self, Vec<Warning>), UpdateError> {
        let mut next = self.clone();
        let mut warnings = Vec::new();
        for property in properties.iter() {
            let key = property.key.as_str();
            if NOT_UPDATABLE.contains(&key)
                || self.config_black_list.split(';').any(|k| k.trim() == key)
            {
                return Err(UpdateError::BlackListed);
            }
            if !next.set(key, &property.value)? && !WITHOUT_EFFECT.contains(&key) {
                warnings.push(unknown_key(key, ""));
            }
            if STATIC.contains(&key) && changed(self, &next, key) {
                return Err(UpdateError::Static(key.to_owned()));
            }
        }
        Ok((next, warnings))
    }

    /// A page of all keys: `mqnamesrv --keys`, and `docs/namesrv-keys.md`.
    pub fn key_table() -> String {
        use fmt::Write as _;
        let mut out = String::from(
            "# Keys of `namesrv.conf`\n\nPrinted by `mqnamesrv --keys`. An environment variable sets a key too: `listenPort` by `ROCKETMQ_LISTEN_PORT`.\nDefaults < file < environment.\n\n| Key | Changed by request 318 | Meaning |\n|---|---|---|\n",
        );
        for (key, meaning) in Self::MEANINGS {
            let change = match key {
                _ if NOT_UPDATABLE.contains(key) => "never",
                _ if STATIC.contains(key) => "after a restart",
                _ => "at once",
            };
            let _ = writeln!(out, "| {key} | {change} | {} |", meaning.trim());
        }
        let without: Vec<&str> = WITHOUT_EFFECT
            .iter()
            .copied()
            .filter(|k| *k != "configHash")
            .collect();
        let _ = writeln!(out, "\nAccepted, without effect: {}.", without.join(", "));
        out
    }

    /// The text of 319 and `-p`: every key, sorted.
    pub fn to_properties(&self) -> String {
        let entries: BTreeMap<_, _> = self.entries().into_iter().collect();
        properties::write(entries.iter().map(|(k, v)| (*k, v.as_str())))
    }
}

fn changed(before: &NamesrvConfig, after: &NamesrvConfig, key: &str) -> bool {
    let value = |config: &NamesrvConfig| {
        config
            .entries()
            .into_iter()
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v)
    };
    value(before) != value(after)
}

fn unknown_key(key: &str, place: &str) -> Warning {
    Warning(
        match properties::nearest(key, NamesrvConfig::KEYS.iter().copied()) {
            Some(near) => format!("{place}unknown key `{key}` is ignored; did you mean `{near}`?"),
            None => format!("{place}unknown key `{key}` is ignored"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        text: &str,
        environment: &[(&str, &str)],
    ) -> Result<(NamesrvConfig, Vec<Warning>), Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("namesrv.conf");
        std::fs::write(&path, text).unwrap();
        let environment: BTreeMap<String, String> = environment
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        NamesrvConfig::load(Some(&path), |name| environment.get(name).cloned())
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let (config, warnings) = load(
            "listenPort=1\nbindAddress=127.0.0.9\norderMessageEnable = TRUE",
            &[("ROCKETMQ_LISTEN_PORT", "2")],
        )
        .unwrap();
        assert_eq!(
            (
                config.listen_port,
                config.bind_address.as_str(),
                config.order_message_enable
            ),
            (2, "127.0.0.9", true)
        );
        assert_eq!(warnings, vec![]);
    }

    #[test]
    fn an_unknown_key_is_a_warning_with_the_nearest_one() {
        let (_, warnings) = load("serverWorkerThreads=8\n\nlistenport=1", &[]).unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].to_string().ends_with(
                "line 3: unknown key `listenport` is ignored; did you mean `listenPort`?"
            ),
            "{}",
            warnings[0]
        );
    }

    #[test]
    fn a_wrong_value_names_file_line_and_key() {
        let message = load("\nlistenPort=98x76", &[]).unwrap_err().to_string();
        assert!(
            message.ends_with(
                "namesrv.conf, line 2: listenPort: expected a port from 0 to 65535, found `98x76`"
            ),
            "{message}"
        );
        let message = load("", &[("ROCKETMQ_HTTP_PORT", "x")])
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "environment variable ROCKETMQ_HTTP_PORT: httpPort: expected a port from 0 to 65535, found `x`"
        );
    }

    #[test]
    fn updates_are_all_or_nothing_and_keep_off_the_black_list() {
        let config = NamesrvConfig {
            config_black_list: "orderMessageEnable;x".to_owned(),
            ..Default::default()
        };
        let update = |text: &str| config.updated(&Properties::parse(text.as_bytes()).unwrap());
        assert!(
            update("supportActingMaster=true")
                .unwrap()
                .0
                .support_acting_master
        );
        for key in [
            "kvConfigPath",
            "configStorePath",
            "rocketmqHome",
            "configBlackList",
            "orderMessageEnable",
        ] {
            assert_eq!(
                update(&format!("supportActingMaster=true\n{key}=x")).unwrap_err(),
                UpdateError::BlackListed,
                "{key}"
            );
        }
        assert_eq!(
            update("listenPort=1").unwrap_err(),
            UpdateError::Static("listenPort".to_owned())
        );
        assert!(
            update("listenPort=9876").is_ok(),
            "the same value is no change"
        );
        assert!(matches!(
            update("supportActingMaster=maybe").unwrap_err(),
            UpdateError::Invalid(_)
        ));
    }

    /// `mqnamesrv --keys > docs/namesrv-keys.md` after a change of the keys.
    #[test]
    fn the_page_of_keys_is_true() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/namesrv-keys.md");
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            NamesrvConfig::key_table()
        );
    }

    #[test]
    fn the_printed_form_reads_back() {
        let mut config = NamesrvConfig {
            listen_port: 7,
            order_message_enable: true,
            ..Default::default()
        };
        let text = config.to_properties();
        let mut read = NamesrvConfig {
            listen_port: 1,
            ..Default::default()
        };
        for p in Properties::parse(text.as_bytes()).unwrap().iter() {
            assert!(read.set(&p.key, &p.value).unwrap(), "{}", p.key);
        }
        config.config_black_list = String::new();
        assert_eq!(read, config);
    }
}
