//! What the tests share whose brokers are processes: the processes, and the load whose acknowledgements are checked.

pub(crate) mod load;
pub(crate) mod process;

use std::time::{Duration, Instant};

/// Whatever is waited for is there by then, on a busy machine too.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Until it is so; the text says what never came.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
