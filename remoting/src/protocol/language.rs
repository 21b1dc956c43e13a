//! Language of the program at the other end, a name in JSON headers and a byte in binary ones.

use std::fmt;

macro_rules! languages {
    ($($variant:ident = $number:literal $name:literal),* $(,)?) => {
        /// Upstream `LanguageCode`. A number or name that is not listed is [`LanguageCode::Other`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum LanguageCode { #[default] $($variant = $number),* }

        impl LanguageCode {
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub fn from_name(name: &str) -> Self {
                Self::from_name_bytes(name.as_bytes())
            }

            pub(crate) fn from_name_bytes(name: &[u8]) -> Self {
                $(if name == $name.as_bytes() { return Self::$variant; })*
                Self::Other
            }

            pub fn from_number(number: i64) -> Self {
                match number { $($number => Self::$variant,)* _ => Self::Other }
            }
        }
    };
}

languages! {
    Java = 0 "JAVA", Cpp = 1 "CPP", DotNet = 2 "DOTNET", Python = 3 "PYTHON", Delphi = 4 "DELPHI",
    Erlang = 5 "ERLANG", Ruby = 6 "RUBY", Other = 7 "OTHER", Http = 8 "HTTP", Go = 9 "GO",
    Php = 10 "PHP", Oms = 11 "OMS", Rust = 12 "RUST", NodeJs = 13 "NODE_JS",
}

impl fmt::Display for LanguageCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for LanguageCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for LanguageCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(name) => Self::from_name(&name),
            serde_json::Value::Number(number) => Self::from_number(number.as_i64().unwrap_or(-1)),
            _ => Self::Other,
        })
    }
}
