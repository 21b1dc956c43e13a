package rocketcluster.clients;

import static rocketcluster.clients.Rig.check;
import static rocketcluster.clients.Rig.equal;
import static rocketcluster.clients.Rig.ok;
import static rocketcluster.clients.Rig.until;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Fills a broker, and later finds the same there, when another kind of broker runs on the same folder. */
final class Store {
    private static final int QUEUES = 4;
    private static final int MESSAGES = 100;
    /** Level 4 is 30 s: long enough for the other broker to have taken over. */
    private static final int DELAY_LEVEL = 4;

    private final Rig rig;
    private final String topic;
    private final String broker;

    private Store(Rig rig, String topic, String broker) {
        this.rig = rig;
        this.topic = topic;
        this.broker = broker;
    }

    /** {@code --seen a,b} names the fillings that must be there, {@code --fill c} the one to make. */
    static int run(Options options) throws Exception {
        try (Rig rig = new Rig(options.namesrv(), options.get("topic"), "store", Rig.admin(options.namesrv()))) {
            Store store = new Store(rig, options.get("topic"), options.get("broker"));
            until(20, "the broker's registration", () -> rig.admin.examineBrokerClusterInfo().getBrokerAddrTable().containsKey("broker-s"));
            String seen = options.get("seen", "");
            int all = 0;
            for (String name : seen.isEmpty() ? new String[0] : seen.split(",")) {
                store.find(name);
                all++;
            }
            String fill = options.get("fill", "");
            if (!fill.isEmpty()) {
                store.fill(fill, all == 0);
            }
            System.out.println("PASS after [" + seen + "] fill [" + fill + "]");
            return 0;
        } catch (Rig.Failed e) {
            System.out.println("FAIL after [" + options.get("seen", "") + "] " + e.getMessage());
            return 1;
        }
    }

    private void fill(String name, boolean first) throws Exception {
        DefaultMQProducer producer = rig.producer();
        if (first) {
            rig.admin.createAndUpdateTopicConfig(broker, new TopicConfig(topic, QUEUES, QUEUES, 6));
        }
        until(20, "a route", () -> producer.fetchPublishMessageQueues(topic).size() == QUEUES);
        for (int i = 0; i < MESSAGES; i++) {
            ok(producer.send(message(name, "" + i)));
        }
        DefaultMQPullConsumer consumer = consumer(name);
        MessageQueue queue = new MessageQueue(topic, "broker-s", 0);
        consumer.fetchSubscribeMessageQueues(topic);
        consumer.pull(queue, "*", 0, 1);
        consumer.updateConsumeOffset(queue, 7);
        consumer.getDefaultMQPullConsumerImpl().getOffsetStore().persist(queue);
        until(10, "the stored offset", () -> consumer.fetchConsumeOffset(queue, true) == 7);
        Message later = message(name, "later");
        later.setDelayTimeLevel(DELAY_LEVEL);
        ok(producer.send(later));
    }

    private void find(String name) throws Exception {
        DefaultMQPullConsumer consumer = consumer(name);
        until(20, "a route", () -> consumer.fetchSubscribeMessageQueues(topic).size() == QUEUES);
        List<String> bodies = new ArrayList<>();
        until(60, "the delayed message of " + name, () -> {
            bodies.clear();
            for (int queue = 0; queue < QUEUES; queue++) {
                read(consumer, new MessageQueue(topic, "broker-s", queue), bodies);
            }
            return bodies.contains(name + " later");
        });
        for (int i = 0; i < MESSAGES; i++) {
            String body = name + " " + i;
            equal(1L, bodies.stream().filter(body::equals).count(), "messages " + body);
        }
        equal(7L, consumer.fetchConsumeOffset(new MessageQueue(topic, "broker-s", 0), true), "stored offset of " + name);
        List<MessageExt> found = rig.admin.queryMessage(topic, name + "-42", 32, 0, Long.MAX_VALUE).getMessageList();
        equal(1, found.size(), "messages with the key " + name + "-42");
        MessageExt byId = rig.admin.viewMessage(topic, found.get(0).getMsgId());
        check(byId != null && Rig.body(byId).equals(name + " 42"), "no message " + name + " 42 by its id");
    }

    private static void read(DefaultMQPullConsumer consumer, MessageQueue queue, List<String> bodies) throws Exception {
        long offset = 0;
        while (true) {
            PullResult result = consumer.pull(queue, "*", offset, 32);
            if (result.getMsgFoundList() == null || result.getMsgFoundList().isEmpty()) {
                return;
            }
            result.getMsgFoundList().forEach(message -> bodies.add(Rig.body(message)));
            offset = result.getNextBeginOffset();
        }
    }

    private Message message(String name, String number) {
        return new Message(topic, "tag", name + "-" + number, (name + " " + number).getBytes(StandardCharsets.UTF_8));
    }

    private DefaultMQPullConsumer consumer(String name) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer("G_" + topic + "_" + name);
        consumer.setNamesrvAddr(rig.namesrv);
        consumer.setInstanceName(rig.instance());
        consumer.start();
        rig.onClose(consumer::shutdown);
        return consumer;
    }
}
