//! The messages of a batch that is read are written and read to the same messages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remoting::protocol::message::{batch_messages, properties, push_batch_message};

fuzz_target!(|bytes: &[u8]| {
    let messages: Vec<_> = batch_messages(bytes).map_while(Result::ok).collect();
    let mut written = Vec::new();
    for message in &messages {
        let _ = properties(message.properties).count();
        push_batch_message(&mut written, message).expect("what was read can be written");
    }
    assert!(batch_messages(&written).map_while(Result::ok).eq(messages));
});
