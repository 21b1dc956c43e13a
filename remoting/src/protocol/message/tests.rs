use proptest::prelude::*;

use super::*;

fn host(v6: bool, port: u16) -> SocketAddr {
    if v6 {
        SocketAddr::new("2001:db8::7".parse().unwrap(), port)
    } else {
        SocketAddr::new("10.0.0.1".parse().unwrap(), port)
    }
}

proptest! {
    #[test]
    fn records_round_trip(
        body in proptest::collection::vec(any::<u8>(), 0..300),
        topic in "[a-zA-Z%_-]{1,200}",
        properties in proptest::collection::vec(any::<u8>(), 0..300),
        v6 in any::<(bool, bool)>(),
        numbers in any::<(i32, i32, i64, i64, i64, i64, i32)>(),
        flags in 0..16i32,
        port in any::<u16>(),
    ) {
        let record = Record {
            queue_id: numbers.0,
            flag: numbers.1,
            queue_offset: numbers.2,
            physical_offset: numbers.3,
            sys_flag: flags,
            born_timestamp: numbers.4,
            born_host: host(v6.0, port),
            store_timestamp: numbers.5,
            store_host: host(v6.1, 10911),
            reconsume_times: numbers.6,
            prepared_transaction_offset: 0,
            body: &body,
            topic: topic.as_bytes(),
            properties: &properties,
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        prop_assert_eq!(bytes.len(), record.encoded_len());
        bytes.extend_from_slice(b"what follows");
        let view = RecordView::parse(&bytes).unwrap();
        prop_assert_eq!(view.size, record.encoded_len());
        prop_assert_eq!(view.magic, if topic.len() > 127 { MAGIC_V2 } else { MAGIC_V1 });
        prop_assert!(view.crc_ok());
        prop_assert_eq!(view.sys_flag & 0xF, flags);
        prop_assert_eq!((view.body, view.topic, view.properties), (&body[..], topic.as_bytes(), &properties[..]));
        prop_assert_eq!((view.born_host, view.store_host), (record.born_host, record.store_host));
        prop_assert_eq!((view.queue_offset, view.physical_offset), (numbers.2, numbers.3));
        let id = view.message_id();
        prop_assert_eq!(MessageId::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn a_cut_record_is_an_error_and_never_a_panic(cut in 0usize..200, change in any::<(usize, u8)>()) {
        let record = Record {
            queue_id: 1, flag: 0, queue_offset: 2, physical_offset: 3, sys_flag: 0, born_timestamp: 4,
            born_host: host(false, 1), store_timestamp: 5, store_host: host(true, 2), reconsume_times: 0,
            prepared_transaction_offset: 0, body: b"hello", topic: b"T", properties: b"TAGS\x01a\x02",
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        if cut < bytes.len() {
            prop_assert!(RecordView::parse(&bytes[..cut]).is_err());
        }
        let at = change.0 % bytes.len();
        bytes[at] = change.1;
        let _ = records(&bytes).count();
    }

    #[test]
    fn batches_round_trip(messages in proptest::collection::vec(
        (any::<i32>(), proptest::collection::vec(any::<u8>(), 0..50), proptest::collection::vec(any::<u8>(), 0..50)), 0..10)) {
        let messages: Vec<_> = messages.iter().map(|(flag, body, properties)| BatchMessage { flag: *flag, body, properties }).collect();
        let mut bytes = Vec::new();
        for message in &messages {
            push_batch_message(&mut bytes, message).unwrap();
        }
        let read: Result<Vec<_>, _> = batch_messages(&bytes).collect();
        prop_assert_eq!(read.unwrap(), messages);
        for cut in 0..bytes.len() {
            let _ = batch_messages(&bytes[..cut]).count();
        }
    }
}

#[test]
fn properties_are_read_with_and_without_the_last_separator() {
    let read = |text: &str| {
        properties(text.as_bytes())
            .map(|(name, value)| {
                format!(
                    "{}={}",
                    String::from_utf8_lossy(name),
                    String::from_utf8_lossy(value)
                )
            })
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(read("a\u{1}b\u{2}c\u{1}d\u{2}"), "a=b c=d");
    assert_eq!(read("a\u{1}b\u{2}c\u{1}d"), "a=b c=d");
    assert_eq!(
        read("a\u{1}\u{2}nothing\u{2}\u{2}c\u{1}d\u{1}e"),
        "c=d\u{1}e"
    );
    assert_eq!(read(""), "");
}

#[test]
fn properties_are_set_and_removed_in_place() {
    let mut text = b"KEYS\x01k\x02TAGS\x01a".to_vec();
    push_property(&mut text, "WAIT", b"true");
    assert_eq!(text, b"KEYS\x01k\x02TAGS\x01a\x02WAIT\x01true\x02");
    set_property(&mut text, "KEYS", b"other");
    assert_eq!(find_property(&text, "KEYS"), Some(&b"other"[..]));
    remove_property(&mut text, "TAGS");
    assert_eq!(text, b"WAIT\x01true\x02KEYS\x01other\x02");
    remove_property(&mut text, "WAIT");
    remove_property(&mut text, "KEYS");
    assert!(text.is_empty());
}

#[test]
fn hashes_are_those_of_java() {
    assert_eq!(java_string_hash("TagA"), 2598919);
    assert_eq!(java_string_hash("Aa"), 2112);
    assert_eq!(java_string_hash("BB"), 2112);
    assert_eq!(java_string_hash(""), 0);
    // The surrogate pair of U+1F600 counts as two units.
    let units = [0xD83Di32, 0xDE00];
    assert_eq!(java_string_hash("\u{1F600}"), units[0] * 31 + units[1]);
    assert_eq!(java_string_hash("polygenelubricants"), i32::MIN);
    assert_eq!(tags_code(Some(b"TagA")), 2598919);
    assert_eq!(tags_code(None), 0);
}

#[test]
fn message_ids_are_upper_case_hex() {
    let id = MessageId {
        host: "127.0.0.15:11911".parse().unwrap(),
        offset: 0x983E,
    };
    assert_eq!(id.to_string(), "7F00000F00002E87000000000000983E");
    assert_eq!(MessageId::parse(&id.to_string().to_lowercase()), Some(id));
    assert_eq!(MessageId::parse("7F00000F00002E8700000000000098zz"), None);
    assert_eq!(MessageId::parse("7F"), None);
}
