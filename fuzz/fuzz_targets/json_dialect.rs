//! Text in the dialect is read to JSON that strict readers take, and never grows out of bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remoting::protocol::body::{
    ConsumerRunningInfo, HeartbeatData, RegisterBrokerBody, ResetOffsetBody, TopicRouteData,
};
use remoting::protocol::json;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = json::parse(bytes) {
        let text = value.to_string();
        assert!(text.len() < 64 * bytes.len() + (64 << 20));
        assert!(json::parse(text.as_bytes()).is_ok());
    }
    let _ = json::from_slice::<HeartbeatData>(bytes);
    let _ = json::from_slice::<TopicRouteData>(bytes);
    let _ = json::from_slice::<ResetOffsetBody>(bytes);
    let _ = json::from_slice::<ConsumerRunningInfo>(bytes);
    let _ = RegisterBrokerBody::decode(bytes, false, 409);
    let _ = RegisterBrokerBody::decode(bytes, true, 479);
});
