//! The scanner agrees with itself: looking a field up finds what walking finds.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use remoting::protocol::hot::{PullHeader, SendHeader};
use remoting::protocol::{HeaderView, SerializeType};

fuzz_target!(|bytes: &[u8]| {
    for kind in [SerializeType::Json, SerializeType::RocketMq] {
        let Ok(view) = HeaderView::parse(kind, bytes) else {
            continue;
        };
        let fields: BTreeMap<_, _> = view
            .ext()
            .map(|(key, value)| (key.to_cow(), value.to_cow()))
            .collect();
        for (key, value) in &fields {
            assert_eq!(view.ext_get(key).as_ref(), Some(value));
        }
        let mut properties = Vec::new();
        if let Ok(send) = SendHeader::parse(&view) {
            send.properties.append_to(&mut properties);
            assert!(std::str::from_utf8(&properties).is_ok());
        }
        let _ = PullHeader::parse(&view);
    }
});
