//! A topic has a route as soon as its creation is answered: clients that start then must not miss it.

use remoting::RemotingCommand;
use remoting::protocol::header::SendMessageRequestHeaderV2;
use remoting::protocol::{request_code, response_code};

use crate::rig::Rig;

const TOPICS: usize = 30;

async fn brokers_of(rig: &Rig, topic: &str) -> usize {
    let route = rig.admin.topic_route(topic).await.unwrap();
    route.map_or(0, |route| route.broker_datas.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_that_creates_a_topic_is_answered_when_the_topic_has_a_route() {
    let rig = Rig::start().await;
    for n in 0..TOPICS {
        let topic = format!("made-by-send-{n}");
        let header = SendMessageRequestHeaderV2 {
            producer_group: "P".to_owned(),
            topic: topic.clone(),
            default_topic: "TBW102".to_owned(),
            default_topic_queue_nums: 4,
            ..Default::default()
        };
        let answer = rig
            .ask_broker(
                RemotingCommand::request(request_code::SEND_MESSAGE_V2)
                    .with_header(&header)
                    .with_body("body"),
            )
            .await;
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
        assert_eq!(brokers_of(&rig, &topic).await, 1, "{topic}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_created_has_a_route() {
    let rig = Rig::start().await;
    for n in 0..TOPICS {
        let topic = format!("made-by-request-{n}");
        let answer = rig
            .ask_broker(
                RemotingCommand::request(request_code::UPDATE_AND_CREATE_TOPIC)
                    .with_ext("topic", topic.as_str())
                    .with_ext("defaultTopic", "TBW102")
                    .with_ext("readQueueNums", "2")
                    .with_ext("writeQueueNums", "2")
                    .with_ext("perm", "6")
                    .with_ext("topicFilterType", "SINGLE_TAG")
                    .with_ext("topicSysFlag", "0")
                    .with_ext("order", "false"),
            )
            .await;
        assert_eq!(answer.code, response_code::SUCCESS, "{:?}", answer.remark);
        assert_eq!(brokers_of(&rig, &topic).await, 1, "{topic}");
    }
    rig.stop().await;
}
