import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * A checked producer and push consumer on the unmodified Apache client; the same source for 4.9.8 and 5.3.3.
 *
 *   flow    NAMESRV TOPIC RATE    sends RATE messages a second until its input ends, consumes them, and looks whether any acknowledged one is missing;
 *                                 each line of its input ends a phase, of which it tells what was counted, and sending goes on
 *   produce NAMESRV TOPIC COUNT   sends until COUNT are acknowledged
 *   consume NAMESRV TOPIC COUNT   a new group, from the first offset, until COUNT different ones have come
 *
 * Also counted: duplicates, messages that stand in their queue before an earlier one, places of a queue that held two different messages, sends that
 * failed although the client tried again by itself, and the longest time between two acknowledgements.
 *
 * Says "ready" when messages flow, and ends with one line of JSON (a phase: "phase" and the same JSON). Exit code 1: something acknowledged did not come back in time.
 */
public class Client {
    static final int CATCH_UP_SECONDS = 60;
    static final Set<String> acked = ConcurrentHashMap.newKeySet();
    static final Set<String> received = ConcurrentHashMap.newKeySet();
    static final AtomicInteger duplicates = new AtomicInteger();
    /** Per queue: offset, and the message that was read there. */
    static final Map<String, ConcurrentSkipListMap<Long, String>> queues = new ConcurrentHashMap<>();
    static final AtomicInteger rewritten = new AtomicInteger();
    static int refused = 0, sent = 0;
    static long longestGapMs = 0, lastAcked = System.nanoTime();
    /** What was counted when the last phase ended. */
    static int ackedBefore = 0, refusedBefore = 0, duplicatesBefore = 0;
    static final String run = UUID.randomUUID().toString();
    static String namesrv, topic;

    public static void main(String[] args) {
        try {
            run(args);
        } catch (Throwable e) {
            e.printStackTrace();
            Runtime.getRuntime().halt(1); // the clients' threads would keep the process
        }
    }

    static void run(String[] args) throws Exception {
        System.setProperty("rocketmq.client.logLevel", "WARN");
        namesrv = args[1];
        topic = args[2];
        int number = Integer.parseInt(args[3]);
        switch (args[0]) {
            case "flow" -> flow(number);
            case "produce" -> {
                DefaultMQProducer producer = producer();
                while (acked.size() < number) send(producer);
                report(Set.of());
            }
            case "consume" -> {
                consumer();
                await(number);
                report(received.size() >= number ? Set.of() : Set.of((number - received.size()) + " of " + number));
            }
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    static void flow(int rate) throws Exception {
        AtomicInteger ended = new AtomicInteger(), phases = new AtomicInteger();
        Thread input = new Thread(() -> {
            try {
                for (int c; (c = System.in.read()) >= 0; ) if (c == '\n') phases.incrementAndGet();
            } catch (java.io.IOException e) {
                System.err.println(e);
            }
            ended.set(1);
        });
        input.setDaemon(true);
        input.start();
        DefaultMQProducer producer = producer();
        send(producer); // makes the topic, so that the consumer finds a route at once
        consumer();
        longestGapMs = 0; // starting is not counted
        lastAcked = System.nanoTime();
        boolean ready = false;
        for (int told = 0; ended.get() == 0; ) {
            send(producer);
            if (told < phases.get()) {
                told++;
                System.out.println("phase " + counted(0));
                ackedBefore = acked.size();
                refusedBefore = refused;
                duplicatesBefore = duplicates.get();
                longestGapMs = 0;
            }
            if (!ready && !received.isEmpty()) {
                ready = true;
                System.out.println("ready");
            }
            Thread.sleep(1000 / rate);
        }
        await(acked.size());
        Set<String> missing = new TreeSet<>(acked);
        missing.removeAll(received);
        report(missing);
    }

    static DefaultMQProducer producer() throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("p-" + UUID.randomUUID());
        producer.setNamesrvAddr(namesrv);
        producer.setInstanceName("producer");
        producer.setPollNameServerInterval(1000);
        producer.setSendMsgTimeout(3000);
        producer.setRetryTimesWhenSendFailed(3);
        producer.start();
        return producer;
    }

    static void consumer() throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("c-" + UUID.randomUUID());
        consumer.setNamesrvAddr(namesrv);
        consumer.setInstanceName("consumer");
        consumer.setPollNameServerInterval(1000);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt m : messages) {
                String body = new String(m.getBody(), StandardCharsets.UTF_8);
                if (!received.add(body)) duplicates.incrementAndGet();
                // The same place read twice, from the master or from a slave, holds the same message for ever.
                String before = queues.computeIfAbsent(m.getBrokerName() + " " + m.getQueueId(), q -> new ConcurrentSkipListMap<>())
                    .put(m.getQueueOffset(), body);
                if (before != null && !before.equals(body)) {
                    rewritten.incrementAndGet();
                    System.err.println(m.getBrokerName() + " " + m.getQueueId() + ": " + m.getQueueOffset() + " was " + before + ", is " + body);
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
    }

    /** One new message, again and again until it is acknowledged. */
    static void send(DefaultMQProducer producer) throws Exception {
        String body = topic + "-" + run + "-" + sent++;
        long began = System.nanoTime();
        long giveUp = began + CATCH_UP_SECONDS * 1_000_000_000L;
        while (true) {
            try {
                SendResult result = producer.send(new Message(topic, "e2e", body, body.getBytes(StandardCharsets.UTF_8)));
                if (result.getSendStatus() == SendStatus.SEND_OK) break;
                System.err.println("send: " + result);
            } catch (org.apache.rocketmq.client.exception.MQClientException | org.apache.rocketmq.remoting.exception.RemotingException
                     | org.apache.rocketmq.client.exception.MQBrokerException | IllegalStateException e) {
                // IllegalStateException: no name server could be reached at all
                System.err.println("send: " + e);
            }
            refused++;
            if (System.nanoTime() > giveUp) throw new IllegalStateException("not one send succeeded in " + CATCH_UP_SECONDS + " s");
            Thread.sleep(100);
        }
        long now = System.nanoTime();
        longestGapMs = Math.max(longestGapMs, (now - lastAcked) / 1_000_000);
        lastAcked = now;
        acked.add(body);
    }

    static void await(int count) throws Exception {
        long giveUp = System.nanoTime() + CATCH_UP_SECONDS * 1_000_000_000L;
        while ((received.size() < count || !received.containsAll(acked)) && System.nanoTime() < giveUp) Thread.sleep(50);
    }

    /** Own messages that lie in their queue before one that was sent earlier. */
    static int disordered() {
        int count = 0;
        for (var queue : queues.values()) {
            int highest = -1;
            for (String body : queue.values()) {
                if (!body.contains(run)) continue; // somebody else's
                int number = Integer.parseInt(body.substring(body.lastIndexOf('-') + 1));
                if (number < highest) count++;
                highest = Math.max(highest, number);
            }
        }
        return count;
    }

    /** Since the last phase ended; what is missing or out of place is of the whole run. */
    static String counted(int missing) {
        return String.format("{\"acked\": %d, \"missing\": %d, \"duplicates\": %d, \"disordered\": %d, \"rewritten\": %d, \"refused\": %d, \"longestGapMs\": %d}",
            acked.size() - ackedBefore, missing, duplicates.get() - duplicatesBefore, disordered(), rewritten.get(), refused - refusedBefore, longestGapMs);
    }

    static void report(Set<String> missing) {
        System.out.println(counted(missing.size()));
        missing.stream().limit(10).forEach(m -> System.err.println("missing: " + m));
        Runtime.getRuntime().halt(missing.isEmpty() ? 0 : 1); // what the clients leave open does not matter here
    }
}
