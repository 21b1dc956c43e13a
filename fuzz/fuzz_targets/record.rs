//! A record that is read is encoded to the same bytes, unless its magic was the wide one for a short
//! topic or its hosts held ports beyond 16 bits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remoting::protocol::message::{Record, RecordView, properties, records};

fuzz_target!(|bytes: &[u8]| {
    let _ = records(bytes).count();
    let Ok(view) = RecordView::parse(bytes) else {
        return;
    };
    let _ = (
        view.crc_ok(),
        view.message_id().to_string(),
        properties(view.properties).count(),
    );
    let mut written = Vec::new();
    let encoded = Record {
        queue_id: view.queue_id,
        flag: view.flag,
        queue_offset: view.queue_offset,
        physical_offset: view.physical_offset,
        sys_flag: view.sys_flag,
        born_timestamp: view.born_timestamp,
        born_host: view.born_host,
        store_timestamp: view.store_timestamp,
        store_host: view.store_host,
        reconsume_times: view.reconsume_times,
        prepared_transaction_offset: view.prepared_transaction_offset,
        body: view.body,
        topic: view.topic,
        properties: view.properties,
    }
    .encode(&mut written);
    if encoded.is_ok() {
        let again = RecordView::parse(&written).expect("what was encoded is read");
        assert_eq!(
            (again.body, again.topic, again.properties),
            (view.body, view.topic, view.properties)
        );
        assert_eq!(
            (again.born_host, again.store_host),
            (view.born_host, view.store_host)
        );
    }
});
