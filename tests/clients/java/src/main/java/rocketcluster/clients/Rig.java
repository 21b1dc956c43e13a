package rocketcluster.clients;

import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** What one scenario works with: names of its own, clients that are closed at its end, waits with a deadline. */
final class Rig implements AutoCloseable {
    static final class Failed extends RuntimeException {
        Failed(String reason) {
            super(reason);
        }
    }

    final String namesrv;
    final String topic;
    final String group;
    final DefaultMQAdminExt admin;
    private final Deque<Runnable> closers = new ArrayDeque<>();
    private int clients;
    private DefaultMQProducer counter;

    Rig(String namesrv, String run, String name, DefaultMQAdminExt admin) {
        this.namesrv = namesrv;
        this.topic = "T_" + run + "_" + name;
        this.group = "G_" + run + "_" + name;
        this.admin = admin;
    }

    static DefaultMQAdminExt admin(String namesrv) throws Exception {
        DefaultMQAdminExt admin = new DefaultMQAdminExt();
        admin.setNamesrvAddr(namesrv);
        admin.setInstanceName("admin" + System.nanoTime());
        admin.start();
        return admin;
    }

    synchronized void onClose(Runnable closer) {
        closers.push(closer);
    }

    @Override
    public void close() {
        for (Runnable closer : closers) {
            try {
                closer.run();
            } catch (RuntimeException e) {
                System.err.println(topic + ": while closing: " + e);
            }
        }
    }

    synchronized String instance() {
        return group + "#" + clients++;
    }

    /** Creates the topic on every master and waits until its route shows that. */
    List<MessageQueue> createTopic(String topic, int queues) throws Exception {
        var cluster = admin.examineBrokerClusterInfo();
        int masters = 0;
        for (var broker : cluster.getBrokerAddrTable().values()) {
            String master = broker.getBrokerAddrs().get(0L);
            if (master != null) {
                admin.createAndUpdateTopicConfig(master, new TopicConfig(topic, queues, queues, 6));
                masters++;
            }
        }
        int expected = masters * queues;
        DefaultMQProducer probe = counter();
        until(15, "a route with " + expected + " queues for " + topic, () -> probe.fetchPublishMessageQueues(topic).size() == expected);
        return probe.fetchPublishMessageQueues(topic);
    }

    List<MessageQueue> createTopic() throws Exception {
        return createTopic(topic, 4);
    }

    DefaultMQProducer newProducer() {
        DefaultMQProducer producer = new DefaultMQProducer(group + "_P");
        producer.setNamesrvAddr(namesrv);
        producer.setInstanceName(instance());
        producer.setSendMsgTimeout(10_000);
        return producer;
    }

    DefaultMQProducer producer() throws Exception {
        DefaultMQProducer producer = newProducer();
        producer.start();
        onClose(producer::shutdown);
        return producer;
    }

    DefaultMQPushConsumer newPushConsumer() throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName(instance());
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        // Routes of retry topics are learned by polling; everything else keeps its stock timing.
        consumer.setPollNameServerInterval(2_000);
        // A rebalance gives the subscription a new version, and the heartbeat that tells the broker is skipped when another
        // one is under way: pulls are then refused (25), by the original too, until the next heartbeat, 30 s by default.
        consumer.setHeartbeatBrokerInterval(3_000);
        return consumer;
    }

    DefaultMQPushConsumer start(DefaultMQPushConsumer consumer, String expression, Inbox inbox) throws Exception {
        consumer.subscribe(topic, expression);
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            inbox.add(messages);
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        return start(consumer);
    }

    DefaultMQPushConsumer start(DefaultMQPushConsumer consumer) throws Exception {
        consumer.start();
        onClose(consumer::shutdown);
        return consumer;
    }

    static SendResult ok(SendResult result) {
        check(result.getSendStatus() == SendStatus.SEND_OK, "send status " + result.getSendStatus());
        check(result.getMsgId() != null && !result.getMsgId().isEmpty(), "a send result without an id");
        return result;
    }

    private DefaultMQProducer counter() throws Exception {
        if (counter == null) {
            counter = producer();
        }
        return counter;
    }

    /** Messages stored in the topic, over all its queues. */
    long stored(String topic) throws Exception {
        long sum = 0;
        for (MessageQueue queue : counter().fetchPublishMessageQueues(topic)) {
            sum += counter.maxOffset(queue) - counter.minOffset(queue);
        }
        return sum;
    }

    static void check(boolean condition, String otherwise) {
        if (!condition) {
            throw new Failed(otherwise);
        }
    }

    static void equal(Object expected, Object found, String what) {
        check(expected.equals(found), what + ": expected " + expected + ", found " + found);
    }

    /** Waits for a condition; an exception from it counts as "not yet" and is told when the time is over. */
    static void until(int seconds, String what, Callable<Boolean> condition) {
        long deadline = System.nanoTime() + seconds * 1_000_000_000L;
        Exception last = null;
        do {
            try {
                if (condition.call()) {
                    return;
                }
                last = null;
            } catch (Exception e) {
                last = e;
            }
            LockSupport.parkNanos(20_000_000);
        } while (System.nanoTime() < deadline);
        throw new Failed("after " + seconds + " s still waiting for " + what + (last == null ? "" : " (" + last + ")"));
    }

    static String body(MessageExt message) {
        return new String(message.getBody(), java.nio.charset.StandardCharsets.UTF_8);
    }
}
