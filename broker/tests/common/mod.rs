//! What the tests share whose brokers are processes: the processes, and the load whose acknowledgements are checked.

pub(crate) mod load;
pub(crate) mod process;

use std::time::{Duration, Instant};

/// Whatever is waited for is there by then, on a busy machine too.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// xorshift; what it draws decides what happens to whom, and when.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        // Small seeds are alike at first.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A number of the environment, for runs by hand.
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// Until it is so; the text says what never came.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
