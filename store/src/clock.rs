//! Time as the store sees it: injected, so that tests hold it in their hands.

use std::time::{SystemTime, UNIX_EPOCH};

pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the epoch; becomes the records' store timestamp.
    fn now_ms(&self) -> i64;
    /// Hour of the day (0–23) in local time, compared with `deleteWhen`.
    fn local_hour(&self) -> u8 {
        let now = jiff::Timestamp::from_millisecond(self.now_ms()).unwrap_or_default();
        let hour = now.to_zoned(jiff::tz::TimeZone::system()).hour();
        u8::try_from(hour).unwrap_or(0)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as i64)
    }
}
