package rocketcluster.clients;

import static rocketcluster.clients.Rig.check;
import static rocketcluster.clients.Rig.equal;
import static rocketcluster.clients.Rig.ok;
import static rocketcluster.clients.Rig.until;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageClientExt;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** Fills a broker, and later finds the same there, when another kind of broker runs on the same folder. */
final class Store {
    private static final int TOPICS = 6;
    private static final int QUEUES = 4;
    /** Of each filling, over all topics: some megabytes, so several files of the log, of the long queues and of the index. */
    private static final int MESSAGES = 4_000;
    /** Every so many: a message found by key and by id. */
    private static final int SAMPLE = 97;
    /** Level 3 is 10 s: the next broker has taken over before, or delivers it as soon as it has. */
    private static final int DELAY_LEVEL = 3;
    private static final int RETRIES = 5;

    private final Rig rig;
    private final String prefix;
    private final String name;
    private final String address;

    private Store(Rig rig, Options options) {
        this.rig = rig;
        this.prefix = options.get("topic");
        this.name = options.get("name");
        this.address = options.get("broker");
    }

    /**
     * {@code --seen a,b} names the fillings that must be there, {@code --cut a} those of which retention may have taken a part, {@code --fill c} the one
     * to make; {@code --retain yes} has the broker delete all that is expired; {@code --state FILE} keeps the limits of every queue from run to run.
     */
    static int run(Options options) throws Exception {
        String seen = options.get("seen", "");
        try (Rig rig = new Rig(options.namesrv(), options.get("topic"), "store", Rig.admin(options.namesrv()))) {
            Store store = new Store(rig, options);
            until(60, "the broker's registration", () -> rig.admin.examineBrokerClusterInfo().getBrokerAddrTable().containsKey(store.name));
            Path state = Path.of(options.get("state"));
            String cut = options.get("cut", "");
            int found = store.find(names(seen), names(cut), state);
            String taken = "";
            if (options.get("retain", "").equals("yes")) {
                taken = ", retention took " + store.retain() + " of the longest queue";
            }
            String fill = options.get("fill", "");
            if (!fill.isEmpty()) {
                store.fill(fill, seen.isEmpty() && cut.isEmpty());
            }
            store.save(state);
            System.out.println("PASS after [" + seen + "] found " + found + " messages, fill [" + fill + "]" + taken);
            return 0;
        } catch (Rig.Failed e) {
            System.out.println("FAIL after [" + seen + "] " + e.getMessage());
            return 1;
        }
    }

    private static List<String> names(String list) {
        return list.isEmpty() ? List.of() : List.of(list.split(","));
    }

    private String topic(int n) {
        return prefix + "_" + n;
    }

    private List<MessageQueue> queues() {
        List<MessageQueue> all = new ArrayList<>();
        for (int n = 0; n < TOPICS; n++) {
            for (int queue = 0; queue < QUEUES; queue++) {
                all.add(new MessageQueue(topic(n), name, queue));
            }
        }
        return all;
    }

    /** Half of all messages go to one queue of the first topic, so that it has several files. */
    private static int topicOf(int message) {
        return message % 2 == 0 ? 0 : message / 2 % TOPICS;
    }

    private MessageQueue queueOf(int message) {
        return new MessageQueue(topic(topicOf(message)), name, message % 2 == 0 ? 0 : message / 2 / TOPICS % QUEUES);
    }

    private void fill(String name, boolean first) throws Exception {
        DefaultMQProducer producer = rig.producer();
        if (first) {
            for (int n = 0; n < TOPICS; n++) {
                rig.admin.createAndUpdateTopicConfig(address, new TopicConfig(topic(n), QUEUES, QUEUES, 6));
            }
        }
        for (int n = 0; n < TOPICS; n++) {
            String topic = topic(n);
            until(20, "a route", () -> producer.fetchPublishMessageQueues(topic).size() == QUEUES);
        }
        for (int i = 0; i < MESSAGES; i++) {
            ok(producer.send(message(name, topicOf(i), "" + i), queueOf(i)));
        }
        DefaultMQPullConsumer consumer = consumer(name);
        for (MessageQueue queue : queues()) {
            consumer.fetchSubscribeMessageQueues(queue.getTopic());
            long offset = offsetOf(queue);
            // Only who pulled has an offset that is kept.
            consumer.pull(queue, "*", 0, 1);
            consumer.updateConsumeOffset(queue, offset);
            consumer.getDefaultMQPullConsumerImpl().getOffsetStore().persist(queue);
            until(10, "the stored offset", () -> consumer.fetchConsumeOffset(queue, true) == offset);
        }
        // Made by the first pull. Its class has another package in each line of versions.
        var group = rig.admin.examineSubscriptionGroupConfig(address, group(name));
        group.setRetryMaxTimes(RETRIES);
        rig.admin.createAndUpdateSubscriptionGroupConfig(address, group);
        Message later = message(name, 1, "later");
        later.setDelayTimeLevel(DELAY_LEVEL);
        ok(producer.send(later));
    }

    private static long offsetOf(MessageQueue queue) {
        return 7 + queue.getQueueId();
    }

    private int find(List<String> whole, List<String> cut, Path state) throws Exception {
        if (whole.isEmpty() && cut.isEmpty()) {
            return 0;
        }
        DefaultMQPullConsumer consumer = consumer("reader");
        for (int n = 0; n < TOPICS; n++) {
            String topic = topic(n);
            until(20, "a route", () -> consumer.fetchSubscribeMessageQueues(topic).size() == QUEUES);
        }
        Map<String, Limits> limits = load(state);
        for (MessageQueue queue : queues()) {
            Limits before = limits.get(queue.toString());
            equal(before.min, consumer.minOffset(queue), "minimum of " + queue);
            check(consumer.maxOffset(queue) >= before.max, queue + " ends at " + consumer.maxOffset(queue) + ", not at " + before.max);
        }
        String newest = whole.isEmpty() ? cut.get(cut.size() - 1) : whole.get(whole.size() - 1);
        MessageQueue delayed = new MessageQueue(topic(1), name, 0);
        Map<String, MessageExt> found = new HashMap<>();
        until(60, "the delayed message of " + newest, () -> {
            found.clear();
            for (int id = 0; id < QUEUES; id++) {
                delayed.setQueueId(id);
                long from = Math.max(consumer.minOffset(delayed), consumer.maxOffset(delayed) - 32);
                read(consumer, new MessageQueue(topic(1), name, id), from, found);
            }
            return found.containsKey(newest + " later");
        });
        found.clear();
        for (MessageQueue queue : queues()) {
            read(consumer, queue, consumer.minOffset(queue), found);
        }
        for (String name : whole) {
            check(found.containsKey(name + " later"), "the delayed message of " + name + " is missing");
            for (int i = 0; i < MESSAGES; i++) {
                MessageExt message = found.get(name + " " + i);
                check(message != null, "message " + name + " " + i + " is missing");
                MessageQueue queue = queueOf(i);
                check(message.getTopic().equals(queue.getTopic()) && message.getQueueId() == queue.getQueueId(), name + " " + i + " is in " + message);
                check(message.getKeys().equals(name + "-" + i) && message.getTags().equals("tag" + i % 3), "properties of " + message);
            }
            for (int i = 0; i < MESSAGES; i += SAMPLE) {
                List<MessageExt> byKey = rig.admin.queryMessage(topic(topicOf(i)), name + "-" + i, 32, 0, Long.MAX_VALUE).getMessageList();
                equal(1, byKey.size(), "messages with the key " + name + "-" + i);
                MessageClientExt pulled = (MessageClientExt) found.get(name + " " + i);
                for (String id : List.of(pulled.getMsgId(), pulled.getOffsetMsgId())) {
                    MessageExt byId = rig.admin.viewMessage(topic(topicOf(i)), id);
                    check(byId != null && Rig.body(byId).equals(Rig.body(byKey.get(0))), "no message " + name + " " + i + " by its id " + id);
                }
            }
        }
        for (String name : whole) {
            equal(RETRIES, rig.admin.examineSubscriptionGroupConfig(address, group(name)).getRetryMaxTimes(), "retries of group " + name);
            DefaultMQPullConsumer group = consumer(name);
            for (MessageQueue queue : queues()) {
                group.fetchSubscribeMessageQueues(queue.getTopic());
                equal(offsetOf(queue), group.fetchConsumeOffset(queue, true), "stored offset of " + name + " in " + queue);
            }
        }
        return found.size();
    }

    /** Everything from an offset to the end, without a hole. */
    private static void read(DefaultMQPullConsumer consumer, MessageQueue queue, long from, Map<String, MessageExt> found) throws Exception {
        long offset = from;
        while (offset < consumer.maxOffset(queue)) {
            PullResult result = consumer.pull(queue, "*", offset, 32);
            equal(PullStatus.FOUND, result.getPullStatus(), "pull of " + queue + " at " + offset);
            for (MessageExt message : result.getMsgFoundList()) {
                equal(offset++, message.getQueueOffset(), "offset in " + queue);
                String body = Rig.body(message).strip();
                boolean again = found.put(body, message) != null;
                // How far delayed messages were delivered is saved every few seconds: after a kill one may come twice.
                check(!again || body.endsWith(" later"), "twice in " + queue + ": " + message);
            }
        }
    }

    /** What is expired goes; who asks for it is sent to the new minimum. Returns how many messages of the longest queue went. */
    private long retain() throws Exception {
        DefaultMQPullConsumer consumer = consumer("reader");
        consumer.fetchSubscribeMessageQueues(topic(0));
        MessageQueue longest = new MessageQueue(topic(0), name, 0);
        long all = consumer.maxOffset(longest);
        rig.admin.deleteExpiredCommitLogByAddr(address);
        until(30, "the minimum to rise", () -> consumer.minOffset(longest) > all / 2);
        // One round deletes several files: until it stands still.
        long[] min = {-1};
        until(30, "the minimum to stand still", () -> {
            long before = min[0];
            min[0] = consumer.minOffset(longest);
            Thread.sleep(1_500);
            return before == min[0];
        });
        PullResult moved = consumer.pull(longest, "*", 0, 32);
        equal(PullStatus.OFFSET_ILLEGAL, moved.getPullStatus(), "pull of what is gone");
        equal(min[0], moved.getNextBeginOffset(), "where it is sent to");
        return min[0];
    }

    private record Limits(long min, long max) {
    }

    private void save(Path state) throws Exception {
        DefaultMQPullConsumer consumer = consumer("limits");
        List<String> lines = new ArrayList<>();
        for (MessageQueue queue : queues()) {
            consumer.fetchSubscribeMessageQueues(queue.getTopic());
            lines.add(consumer.minOffset(queue) + " " + consumer.maxOffset(queue) + " " + queue);
        }
        Files.write(state, lines);
    }

    private static Map<String, Limits> load(Path state) throws Exception {
        Map<String, Limits> limits = new HashMap<>();
        for (String line : Files.readAllLines(state)) {
            String[] parts = line.split(" ", 3);
            limits.put(parts[2], new Limits(Long.parseLong(parts[0]), Long.parseLong(parts[1])));
        }
        return limits;
    }

    /** Its body ends in blanks, so that there is something to store. */
    private Message message(String name, int topic, String number) {
        int i = number.equals("later") ? 0 : Integer.parseInt(number);
        String body = name + " " + number + " ".repeat(300 + i * 7 % 900);
        return new Message(topic(topic), "tag" + i % 3, name + "-" + number, body.getBytes(StandardCharsets.UTF_8));
    }

    private String group(String name) {
        return "G_" + prefix + "_" + name;
    }

    private DefaultMQPullConsumer consumer(String name) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(group(name));
        consumer.setNamesrvAddr(rig.namesrv);
        consumer.setInstanceName(rig.instance());
        consumer.start();
        rig.onClose(consumer::shutdown);
        return consumer;
    }
}
