use proptest::prelude::*;

use super::*;
use crate::protocol::RemotingCommand;
use crate::protocol::header::{
    PullMessageResponseHeader, SendMessageRequestHeader, SendMessageRequestHeaderV2,
    SendMessageResponseHeader,
};

fn json(text: &str) -> HeaderView<'_> {
    HeaderView::parse(SerializeType::Json, text.as_bytes()).unwrap()
}

/// Text with everything that JSON escapes, and beyond the basic plane.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9%_@#.:-]{0,30}",
        "[a-z\u{1}\u{2}\"\\\\/\n\t\u{e9}\u{4e2d}\u{1F600}]{0,20}",
        any::<String>(),
    ]
}

fn command() -> impl Strategy<Value = RemotingCommand> {
    (
        (
            any::<i16>(),
            any::<i16>(),
            any::<i32>(),
            any::<i32>(),
            0..14i64,
        ),
        proptest::option::of(
            text().prop_filter("an empty remark is none", |text| !text.is_empty()),
        ),
        proptest::collection::btree_map(text(), text(), 0..24),
        proptest::collection::vec(any::<u8>(), 0..100),
        any::<bool>(),
    )
        .prop_map(
            |(numbers, remark, ext_fields, body, binary)| RemotingCommand {
                code: numbers.0.into(),
                language: LanguageCode::from_number(numbers.4),
                version: numbers.1.into(),
                opaque: numbers.2,
                flag: numbers.3,
                remark,
                ext_fields,
                body: body.into(),
                serialize_type: if binary {
                    SerializeType::RocketMq
                } else {
                    SerializeType::Json
                },
            },
        )
}

proptest! {
    #[test]
    fn frames_round_trip(command in command()) {
        let frame = command.to_frame();
        let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
        prop_assert_eq!(length, frame.len() - 4);
        prop_assert_eq!(RemotingCommand::decode(&frame[4..]).unwrap(), command);
    }

    #[test]
    fn the_scanner_reads_what_serde_reads(command in command(), pretty in any::<bool>(), ascii in any::<bool>()) {
        let value = serde_json::json!({
            "unknown": {"nested": ["}\"", 1, {"a": null}]},
            "extFields": command.ext_fields,
            "code": command.code, "version": command.version, "flag": command.flag,
            "language": command.language.name(), "remark": command.remark, "opaque": command.opaque,
            "serializeTypeCurrentRPC": "JSON",
        });
        let mut written = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        if ascii {
            // As writers do that escape everything beyond ASCII, in surrogate pairs.
            written = written.chars().map(|letter| if letter.is_ascii() { letter.to_string() } else {
                letter.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04X}")).collect()
            }).collect();
        }
        let view = json(&written);
        let read = RemotingCommand::from_view(&view, command.serialize_type, command.body.clone());
        prop_assert_eq!(read, command.clone());
        for (key, value) in &command.ext_fields {
            let read = view.ext_get(key);
            prop_assert_eq!(read.as_deref(), Some(value.as_str()));
        }
    }

    #[test]
    fn cut_and_changed_frames_never_panic(command in command(), cut in any::<usize>(), changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4)) {
        let mut frame = command.to_frame().split_off(4);
        for (at, byte) in changes {
            let at = at % frame.len();
            frame[at] = byte;
        }
        let _ = RemotingCommand::decode(&frame);
        let _ = RemotingCommand::decode(&frame[..cut % frame.len()]);
    }

    #[test]
    fn send_headers_read_the_same_by_letters_and_in_full(
        group in text(), topic in text(), properties in text(),
        numbers in any::<(i32, i32, i32, i64, i32, i32)>(), unit in any::<bool>(), max in any::<Option<i32>>(), binary in any::<bool>(),
    ) {
        let full = SendMessageRequestHeader {
            producer_group: group.clone(), topic: topic.clone(), default_topic: "TBW102".into(), default_topic_queue_nums: numbers.0,
            queue_id: numbers.1, sys_flag: numbers.2, born_timestamp: numbers.3, flag: numbers.4, properties: Some(properties.clone()),
            reconsume_times: Some(numbers.5), unit_mode: Some(unit), max_reconsume_times: max, batch: Some(false), broker_name: None,
        };
        let letters = SendMessageRequestHeaderV2 {
            producer_group: group.clone(), topic: topic.clone(), default_topic: "TBW102".into(), default_topic_queue_nums: numbers.0,
            queue_id: numbers.1, sys_flag: numbers.2, born_timestamp: numbers.3, flag: numbers.4, properties: Some(properties.clone()),
            reconsume_times: Some(numbers.5), unit_mode: Some(unit), max_reconsume_times: max, batch: Some(false), broker_name: None,
        };
        let mut requests = [
            RemotingCommand::request(request_code::SEND_MESSAGE).with_header(&full),
            RemotingCommand::request(request_code::SEND_MESSAGE_V2).with_header(&letters),
        ];
        for request in &mut requests {
            if binary { request.serialize_type = SerializeType::RocketMq; }
            let frame = request.to_frame();
            let (kind, header, _) = crate::protocol::command::split_frame(&frame[4..]).unwrap();
            let view = HeaderView::parse(kind, header).unwrap();
            let read = SendHeader::parse(&view).unwrap();
            prop_assert_eq!(&*read.producer_group.to_cow(), group.as_str());
            prop_assert_eq!(&*read.topic, topic.as_str());
            prop_assert_eq!(&*read.default_topic.to_cow(), "TBW102");
            prop_assert_eq!(
                (read.default_topic_queue_nums, read.queue_id, read.sys_flag, read.born_timestamp, read.flag, read.reconsume_times),
                numbers
            );
            prop_assert_eq!((read.unit_mode, read.max_reconsume_times, read.batch), (unit, max, false));
            let mut appended = b"before".to_vec();
            read.properties.append_to(&mut appended);
            prop_assert_eq!(&appended[6..], properties.as_bytes());
        }
        let again: SendMessageRequestHeader = requests[0].header().unwrap();
        prop_assert_eq!(again, full);
        let again: SendMessageRequestHeaderV2 = requests[1].header().unwrap();
        prop_assert_eq!(again, letters);
    }

    /// A bounded stand-in for the fuzz targets; proptest prints the seed of a failure.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        smoke(&bytes);
    }

    #[test]
    fn arbitrary_json_like_text_never_panics(text in "[{}\\[\\]\":,\\\\a-f0-9nu. -]{0,120}") {
        smoke(text.as_bytes());
    }
}

fn smoke(bytes: &[u8]) {
    let _ = RemotingCommand::decode(bytes);
    for kind in [SerializeType::Json, SerializeType::RocketMq] {
        if let Ok(view) = HeaderView::parse(kind, bytes) {
            let _ = (view.remark(), view.ext().count());
            let _ = (SendHeader::parse(&view), PullHeader::parse(&view));
            let _ = view.header::<PullMessageResponseHeader>();
        }
    }
    let _ = crate::protocol::message::records(bytes).count();
    let _ = crate::protocol::message::batch_messages(bytes).count();
    let _ = crate::protocol::message::properties(bytes).count();
    let _ = crate::protocol::json::parse(bytes);
    let _ = crate::protocol::body::RegisterBrokerBody::decode(bytes, false, 409);
    let _ = crate::protocol::body::RegisterBrokerBody::decode(bytes, true, 479);
}

#[test]
fn the_header_is_read_as_leniently_as_upstream_reads_it() {
    let view = json(
        r#" { "version" : 317 , "extra":[1,{"a":"]}"}], "remark" : null, "language":9,"extFields" : {"a": 1, "b":true,"c":null,"d":-2.5,"e":{"x":[1]}, "f":"\u0001\/\ud83d\ude00\ud83d!" }, "opaque":"7","code":200050,"flag":2 } "#,
    );
    assert_eq!(
        (view.code, view.opaque, view.version, view.flag),
        (200050, 7, 317, 2)
    );
    assert_eq!(view.language, LanguageCode::Go);
    assert_eq!(view.remark(), None);
    assert!(view.is_oneway() && !view.is_response());
    let ext: Vec<_> = view
        .ext()
        .map(|(key, value)| format!("{}={}", key.to_cow(), value.to_cow()))
        .collect();
    assert_eq!(
        ext,
        [
            "a=1",
            "b=true",
            "d=-2.5",
            r#"e={"x":[1]}"#,
            "f=\u{1}/\u{1F600}\u{FFFD}!"
        ]
    );
    assert_eq!(json("{}").ext().count(), 0);
    assert_eq!(
        json(r#"{"extFields":null,"language":"SCALA"}"#)
            .ext()
            .count(),
        0
    );
    assert_eq!(
        json(r#"{"extFields":{},"remark":""}"#).remark().as_deref(),
        Some("")
    );
}

#[test]
fn text_that_is_no_utf8_is_read_with_replacement() {
    let header = b"{\"code\":1,\"extFields\":{\"k\":\"a\xffb\",\"e\":\"\\n\xff\"}}";
    let view = HeaderView::parse(SerializeType::Json, header).unwrap();
    assert_eq!(view.ext_get("k").unwrap(), "a\u{FFFD}b");
    assert_eq!(view.ext_get("e").unwrap(), "\n\u{FFFD}");
    let mut out = Vec::new();
    view.ext().next().unwrap().1.append_to(&mut out);
    assert_eq!(out, "a\u{FFFD}b".as_bytes());
}

#[test]
fn malformed_headers_are_errors() {
    for text in [
        "",
        "{",
        "[]",
        "{\"code\"}",
        "{\"code\":}",
        "{\"code\":1",
        "{\"code\":1}x",
        "{\"code\":\"ten\"}",
        "{\"code\":99999999999}",
        "{\"extFields\":[]}",
        "{\"extFields\":{\"a\":\"b\"}",
        "{\"extFields\":{\"a\":\"b\\\"}}",
        "{code:1}",
        "{\"a\":1,}",
        "{\"a\":{\"b\":[}",
    ] {
        assert!(
            HeaderView::parse(SerializeType::Json, text.as_bytes()).is_err(),
            "{text}"
        );
    }
}

#[test]
fn a_missing_field_is_told_in_upstreams_words() {
    let view = json(r#"{"code":310,"extFields":{"a":"G","e":"0"}}"#);
    assert_eq!(
        SendHeader::parse(&view).unwrap_err().to_string(),
        "the custom field <topic> is null"
    );
    let view = json(r#"{"code":11,"extFields":{"topic":"T","queueId":"x"}}"#);
    assert_eq!(
        PullHeader::parse(&view).unwrap_err().to_string(),
        "the custom field <queueId> has the unusable value \"x\""
    );
}

#[test]
fn answers_are_written_in_the_form_asked_for() {
    for kind in [SerializeType::Json, SerializeType::RocketMq] {
        let mut out = BytesMut::new();
        encode_send_response(
            &mut out,
            &SendResponse {
                opaque: 7,
                serialize_type: kind,
                code: 0,
                remark: None,
                msg_id: "7F00",
                queue_id: 3,
                queue_offset: 1 << 40,
                transaction_id: Some("U"),
                region: "DefaultRegion",
                trace_on: true,
            },
        );
        let send = RemotingCommand::decode(&out[4..]).unwrap();
        assert_eq!((send.opaque, send.flag, send.version), (7, 1, VERSION));
        assert_eq!(send.serialize_type, kind);
        assert_eq!(send.ext("MSG_REGION"), Some("DefaultRegion"));
        assert_eq!(send.ext("TRACE_ON"), Some("true"));
        let header: SendMessageResponseHeader = send.header().unwrap();
        assert_eq!((header.queue_id, header.queue_offset), (3, 1 << 40));

        let mut out = BytesMut::from(&b"earlier"[..]);
        encode_pull_response(
            &mut out,
            &PullResponse {
                opaque: 8,
                serialize_type: kind,
                code: 0,
                remark: Some("FOUND"),
                suggest_which_broker_id: 0,
                next_begin_offset: 5,
                min_offset: 1,
                max_offset: 9,
                topic_sys_flag: 0,
                group_sys_flag: 0,
            },
            4,
        );
        out.extend_from_slice(b"body");
        let pull = RemotingCommand::decode(&out[11..]).unwrap();
        assert_eq!(&pull.body[..], b"body");
        assert_eq!(pull.remark.as_deref(), Some("FOUND"));
        let header: PullMessageResponseHeader = pull.header().unwrap();
        assert_eq!(
            (
                header.next_begin_offset,
                header.min_offset,
                header.max_offset
            ),
            (5, 1, 9)
        );
    }
}

#[test]
fn an_answer_to_a_oneway_request_is_marked_as_unwanted() {
    let request = RemotingCommand::request(15).oneway();
    assert!(
        RemotingCommand::response(0)
            .reply_to(&request)
            .is_unwanted()
    );
    let request = RemotingCommand::request(15);
    assert!(
        !RemotingCommand::response(0)
            .reply_to(&request)
            .is_unwanted()
    );
    assert!(!request.oneway().is_unwanted());
}

#[test]
fn a_code_that_the_binary_header_cannot_hold_goes_out_as_json() {
    let mut request = RemotingCommand::request(200_050);
    request.serialize_type = SerializeType::RocketMq;
    let read = RemotingCommand::decode(&request.to_frame()[4..]).unwrap();
    assert_eq!(
        (read.code, read.serialize_type),
        (200_050, SerializeType::Json)
    );
}

/// Prints the time of reading one send header. Run by hand:
/// `cargo test --release -p remoting header_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn header_cost() {
    const ROUNDS: u32 = 1_000_000;
    let header = br#"{"code":310,"extFields":{"a":"benchmark_producer","b":"BenchmarkTest","c":"TBW102","d":"4","e":"3","f":"0","g":"1795223799704","h":"0","i":"UNIQ_KEY\u00017F000001A2C8251A69D7012345670000\u0002WAIT\u0001true\u0002","j":"0","k":"false","m":"false","n":"broker-a"},"flag":0,"language":"JAVA","opaque":123456,"serializeTypeCurrentRPC":"JSON","version":409}"#;
    /// Nanoseconds this thread has been on a processor.
    fn on_cpu() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }
    let measure = |what: &str, work: &mut dyn FnMut()| {
        let started = on_cpu();
        for _ in 0..ROUNDS {
            work();
        }
        println!("{what}: {} ns", (on_cpu() - started) / u64::from(ROUNDS));
    };
    let mut properties = Vec::new();
    println!("{} bytes", header.len());
    measure("view", &mut || {
        let view = HeaderView::parse(SerializeType::Json, std::hint::black_box(header)).unwrap();
        std::hint::black_box(&view);
    });
    let view = HeaderView::parse(SerializeType::Json, header).unwrap();
    measure("walk", &mut || {
        std::hint::black_box(std::hint::black_box(&view).ext().count());
    });
    measure("send header", &mut || {
        std::hint::black_box(SendHeader::parse(std::hint::black_box(&view)).unwrap());
    });
    measure("all, with properties", &mut || {
        let view = HeaderView::parse(SerializeType::Json, std::hint::black_box(header)).unwrap();
        let send = SendHeader::parse(&view).unwrap();
        properties.clear();
        send.properties.append_to(&mut properties);
        std::hint::black_box((&send, &properties));
    });
    let mut out = BytesMut::with_capacity(1024);
    measure("answer", &mut || {
        out.clear();
        encode_send_response(
            &mut out,
            &SendResponse {
                opaque: 123_456,
                serialize_type: SerializeType::Json,
                code: 0,
                remark: None,
                msg_id: "7F00000F00002E87000000000000983E",
                queue_id: 3,
                queue_offset: 12345,
                transaction_id: Some("7F000001A2C8251A69D7012345670000"),
                region: "DefaultRegion",
                trace_on: true,
            },
        );
        std::hint::black_box(&out);
    });
}

#[test]
fn the_template_of_a_send_answer_says_what_the_general_encoder_says() {
    let host = "0A00000100002A9F";
    for (region, trace_on, offset) in [
        ("DefaultRegion", true, 0x12_3456_789A_u64),
        ("a\"b", false, u64::MAX),
    ] {
        let (mut short, mut general) = (BytesMut::new(), BytesMut::new());
        SendResponseTemplate::new(host, region, trace_on).encode(
            &mut short,
            -7,
            offset,
            3,
            1 << 40,
        );
        let response = SendResponse {
            opaque: -7,
            serialize_type: SerializeType::Json,
            code: 0,
            remark: None,
            msg_id: &format!("{host}{offset:016X}"),
            queue_id: 3,
            queue_offset: 1 << 40,
            transaction_id: None,
            region,
            trace_on,
        };
        encode_send_response(&mut general, &response);
        assert_eq!(
            RemotingCommand::decode(&short[4..]),
            RemotingCommand::decode(&general[4..])
        );
    }
}
